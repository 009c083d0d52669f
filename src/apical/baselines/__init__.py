"""What growing is compared with, one file per comparator, each with the interface of `apical.Grower`."""

from apical.baselines._dense import Dense
from apical.baselines._iss import ISS, ISSConfig
from apical.baselines._record import network_record
from apical.baselines._uniform import Uniform, uniform_keep

__all__ = ["ISS", "Dense", "ISSConfig", "Uniform", "network_record", "uniform_keep"]

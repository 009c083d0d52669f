"""What growing is compared with, one file per comparator, each with the interface of `apical.Grower`."""

from apical.baselines._autogrow import AutoGrow, AutoGrowConfig, blocks_in_turn
from apical.baselines._choose import by_threshold, fewest, strongest
from apical.baselines._dense import Dense
from apical.baselines._final import Final
from apical.baselines._iss import ISS, ISSConfig
from apical.baselines._l1 import L1, L1Config
from apical.baselines._reconstruct import greedy_removal, rescaling
from apical.baselines._record import network_record
from apical.baselines._scores import filter_norms, gate_products
from apical.baselines._slimming import Slimming, SlimmingConfig
from apical.baselines._soft import SoftConfig, SoftFilterPruning
from apical.baselines._subject import Rows, Subject
from apical.baselines._taylor import Taylor, TaylorConfig
from apical.baselines._thinet import ThiNet, ThiNetConfig
from apical.baselines._uniform import Uniform, uniform_keep

__all__ = [
    "ISS",
    "L1",
    "AutoGrow",
    "AutoGrowConfig",
    "Dense",
    "Final",
    "ISSConfig",
    "L1Config",
    "Rows",
    "Slimming",
    "SlimmingConfig",
    "SoftConfig",
    "SoftFilterPruning",
    "Subject",
    "Taylor",
    "TaylorConfig",
    "ThiNet",
    "ThiNetConfig",
    "Uniform",
    "blocks_in_turn",
    "by_threshold",
    "fewest",
    "filter_norms",
    "gate_products",
    "greedy_removal",
    "network_record",
    "rescaling",
    "strongest",
    "uniform_keep",
]

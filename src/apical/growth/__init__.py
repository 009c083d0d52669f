"""Growing a network while it trains: seed, schedule, sampling under a budget, births, and the Grower around them."""

from apical.growth._config import GrowthConfig
from apical.growth._grower import Grower
from apical.growth._measured import choose_divisor
from apical.growth._method import Choice
from apical.growth._record import EpochRecord
from apical.growth._scs import ScsConfig

__all__ = ["Choice", "EpochRecord", "Grower", "GrowthConfig", "ScsConfig", "choose_divisor"]

"""Growing a network while it trains: seed, schedule, what is worth what, births, and the Grower around them."""

from apical.growth._bits import BitConfig
from apical.growth._config import GrowthConfig
from apical.growth._grower import Grower
from apical.growth._method import Choice
from apical.growth._plan import Plan, PlannedEpoch
from apical.growth._record import EpochRecord
from apical.growth._scs import ScsConfig
from apical.growth._sharded_checkpoint import load_sharded, save_sharded

__all__ = [
    "BitConfig",
    "Choice",
    "EpochRecord",
    "Grower",
    "GrowthConfig",
    "Plan",
    "PlannedEpoch",
    "ScsConfig",
    "load_sharded",
    "save_sharded",
]

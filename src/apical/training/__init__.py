"""A short, readable training loop over plain PyTorch, with restructuring between steps and epochs.

`train` does a whole run: epochs, evaluation, checkpoints, run folder, progress. Read `_loop.py` for the steps,
`_run.py` for what happens around them. The loop knows a growth method by the protocol `GrowthMethod` only.
"""

from apical.training._config import OptimizerConfig, ScheduleConfig, TrainingConfig
from apical.training._identity import check_same_run
from apical.training._interrupt import Interrupted
from apical.training._loggers import Logger, Pixels, TensorBoardLogger
from apical.training._loop import evaluate
from apical.training._own_state import seed_everything
from apical.training._parallel import check_same_everywhere
from apical.training._parts import PartsIO
from apical.training._processes import Processes, processes
from apical.training._progress import PacedProgress, Progress, make_progress
from apical.training._protocols import (
    DescribedLoader,
    FreezingMethod,
    GrowthMethod,
    Loader,
    MethodFactory,
    StepwiseMethod,
)
from apical.training._results import Loaders, TrainingResult
from apical.training._run import train
from apical.training._tally import EvalStats
from apical.training._task import BatchResult, Classification, Metric, StreamTask, Task

__all__ = [
    "BatchResult",
    "Classification",
    "DescribedLoader",
    "EvalStats",
    "FreezingMethod",
    "GrowthMethod",
    "Interrupted",
    "Loader",
    "Loaders",
    "Logger",
    "MethodFactory",
    "Metric",
    "OptimizerConfig",
    "PacedProgress",
    "PartsIO",
    "Pixels",
    "Processes",
    "Progress",
    "ScheduleConfig",
    "StepwiseMethod",
    "StreamTask",
    "Task",
    "TensorBoardLogger",
    "TrainingConfig",
    "TrainingResult",
    "check_same_everywhere",
    "check_same_run",
    "evaluate",
    "make_progress",
    "processes",
    "seed_everything",
    "train",
]

"""A short, readable training loop over plain PyTorch, with restructuring between epochs.

`train` does a whole run: epochs, evaluation, checkpoints, run folder, progress. `train_one_epoch` and `evaluate` are
its parts, for loops of your own. The loop knows a growth method by the protocol `GrowthMethod` only.
"""

from apical._atomic import atomic_file
from apical.training._accounting import epoch_train_macs, training_costs
from apical.training._amp import assumed_amp, settle_amp
from apical.training._batch import ResizableLoader, RoomyMethod, batch_factor, lr_scale
from apical.training._checkpoint import Checkpoint, has_checkpoint, load_checkpoint, require_plain, save_checkpoint
from apical.training._config import OptimizerConfig, ScheduleConfig, TrainingConfig, resolve_device
from apical.training._describe import describe_device, versions
from apical.training._epoch import EpochStats, EvalStats, apply_memory_format_, autocast, evaluate, train_one_epoch
from apical.training._identity import check_same_run, run_identity
from apical.training._interrupt import Interrupted, InterruptGuard
from apical.training._loggers import Logger, Pixels, TensorBoardLogger, require_tensorboard
from apical.training._memory import peak_memory_mib
from apical.training._optimizer import build_optimizer, lr_factor, set_lr_
from apical.training._parallel import Replica, check_same_everywhere
from apical.training._processes import Processes, process_group, processes
from apical.training._progress import PacedProgress, Progress, ProgressMode, make_progress, summarise_widths
from apical.training._protocols import (
    DescribedLoader,
    FreezingMethod,
    GrowthMethod,
    Loader,
    MethodFactory,
    PlainMethod,
    StepwiseMethod,
)
from apical.training._random import deterministic_algorithms, random_state, seed_everything, set_random_state
from apical.training._results import Loaders, TrainingResult
from apical.training._run import train
from apical.training._run_folder import RunFolder, plain, write_text, writing
from apical.training._task import BatchResult, Classification, Metric, StreamTask, Task, task_facts

__all__ = [
    "BatchResult",
    "Checkpoint",
    "Classification",
    "DescribedLoader",
    "EpochStats",
    "EvalStats",
    "FreezingMethod",
    "GrowthMethod",
    "InterruptGuard",
    "Interrupted",
    "Loader",
    "Loaders",
    "Logger",
    "MethodFactory",
    "Metric",
    "OptimizerConfig",
    "PacedProgress",
    "Pixels",
    "PlainMethod",
    "Processes",
    "Progress",
    "ProgressMode",
    "Replica",
    "ResizableLoader",
    "RoomyMethod",
    "RunFolder",
    "ScheduleConfig",
    "StepwiseMethod",
    "StreamTask",
    "Task",
    "TensorBoardLogger",
    "TrainingConfig",
    "TrainingResult",
    "apply_memory_format_",
    "assumed_amp",
    "atomic_file",
    "autocast",
    "batch_factor",
    "build_optimizer",
    "check_same_everywhere",
    "check_same_run",
    "describe_device",
    "deterministic_algorithms",
    "epoch_train_macs",
    "evaluate",
    "has_checkpoint",
    "load_checkpoint",
    "lr_factor",
    "lr_scale",
    "make_progress",
    "peak_memory_mib",
    "plain",
    "process_group",
    "processes",
    "random_state",
    "require_plain",
    "require_tensorboard",
    "resolve_device",
    "run_identity",
    "save_checkpoint",
    "seed_everything",
    "set_lr_",
    "set_random_state",
    "settle_amp",
    "summarise_widths",
    "task_facts",
    "train",
    "train_one_epoch",
    "training_costs",
    "versions",
    "write_text",
    "writing",
]

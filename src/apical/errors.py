"""The exceptions that apical raises on purpose.

Every one says what was got, what was expected, where (module path, file or option) and how to mend it. All derive
from `ApicalError`; those that a caller's argument or file can cause are `ValueError` too.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "ApicalError",
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "LoadError",
    "ProcessLostError",
    "ResizeError",
    "SaveError",
    "TraceError",
    "TrainingError",
    "why_not_written",
]


class ApicalError(Exception):
    """Base of every error that apical raises on purpose."""


class TraceError(ApicalError, ValueError):
    """A model cannot be analysed: it does not run, export or confirm its groups on the example inputs."""


class ResizeError(ApicalError, ValueError):
    """A resize was refused before anything changed: the keep set, the model or the optimizer does not fit."""


class LoadError(ApicalError, ValueError):
    """A saved model folder is damaged, unsafe, or does not belong to the model it is loaded into."""


class SaveError(ApicalError, OSError):
    """A model cannot be written into its folder: the disk is full, say. What was saved there before can be loaded."""


class BudgetError(ApicalError, ValueError):
    """A budget cannot be read, or no reachable network meets it."""


class ExportError(ApicalError, RuntimeError):
    """A model cannot be written in a portable format, or what was written does not compute the same."""


class ConfigError(ApicalError, ValueError):
    """A configuration or recipe holds a value that cannot work."""


class DataError(ApicalError, ValueError):
    """A data set is missing, unreadable or not in the layout it was said to have."""


class CheckpointError(ApicalError, ValueError):
    """A checkpoint cannot be written or read, is torn, or belongs to another run."""


class TrainingError(ApicalError, RuntimeError):
    """Training cannot go on, for instance because the loss is no longer finite."""


class ProcessLostError(TrainingError):
    """Of several processes that train together, one no longer answers; resume from the last checkpoint."""


def why_not_written(path: Path, error: OSError) -> str:
    """What stands in the way of a file or folder, in words: often a file where a folder is wanted, or the reverse.

    Example:
        >>> why_not_written(Path("/"), IsADirectoryError())
        '/ is a folder, expected a file'
    """
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        blocking = next((part for part in (path, *path.parents) if part.is_file()), None)
        if blocking is not None:
            return f"{blocking} is a file, expected a folder"
    if isinstance(error, IsADirectoryError) and path.is_dir():
        return f"{path} is a folder, expected a file"
    return str(error)

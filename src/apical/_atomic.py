"""Files that are there whole or not at all, whenever the process dies or the disk is full, and locks that die with it.

Everything that is written for keeps goes through here: aside, under a name that nobody else has, flushed to the disk,
then moved into place.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TRIES = 100
_ASIDE = re.compile(r"\..+\.[0-9a-f]{12}\.tmp(\..*)?", re.DOTALL)  # a name that `new_aside` gives
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # what drives say that cannot flush folders


class atomic_file:  # noqa: N801 - used as a with-statement
    """A path to write aside, flushed and moved onto `path` when the block ends well, removed when it does not.

    Args:
        path: the file.
        previous: where the file that was there is moved then; None replaces it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_file(Path(folder) / "a.txt") as aside:
        ...         _ = aside.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """

    def __init__(self, path: Path, previous: Path | None = None) -> None:
        self._path, self._previous = path, previous

    def __enter__(self) -> Path:
        self._aside = new_aside(self._path)
        return self._aside

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                flush_to_disk(self._aside)
                if self._previous is not None and self._path.exists():
                    self._path.replace(self._previous)
                self._aside.replace(self._path)
                flush_to_disk(self._path.parent)
        finally:
            self._aside.unlink(missing_ok=True)


def new_aside(path: Path) -> Path:
    """An empty file beside `path`, hidden, new, of this call's own; no link that lies in wait there is followed.

    Raises:
        OSError: the folder does not exist or cannot be written, no file can have this name, or what has it is a device,
            a pipe or a socket, in whose place a file would be put.
    """
    if not path.name:
        raise OSError(errno.EINVAL, "this is no name of a file", str(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "this is a device, a pipe or a socket, not an ordinary file", str(path))
    for _ in range(_TRIES):
        aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp{path.suffix}")
        try:
            aside.open("xb").close()
        except FileExistsError:
            continue
        except ValueError as problem:  # it has a zero, or half a character
            raise OSError(errno.EINVAL, f"this is no name of a file: {problem}", ascii(str(path))) from problem
        return aside
    raise FileExistsError(f"no free name beside {path} after {_TRIES} tries")


def make_folder(path: Path) -> None:
    """Make a folder, with those around it, unless it is there.

    Raises:
        OSError: it cannot be made, or no folder can have this name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except ValueError as problem:  # it has a zero, or half a character
        raise OSError(errno.EINVAL, f"this is no name of a folder: {problem}", ascii(str(path))) from problem


def asides(path: Path) -> list[Path]:
    """What was written aside for `path` and is still there: somebody is writing it, or died before it was moved."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*.tmp*"))


def asides_in(folder: Path) -> list[Path]:
    """What was written aside for any file of a folder, and is still there."""
    return sorted(path for path in folder.iterdir() if _ASIDE.fullmatch(path.name))


def flush_to_disk(path: Path) -> None:
    """fsync of a file, or of a folder's list of names where the system can."""
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        if folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in _NO_FOLDER_SYNC):
            raise
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, patience_s: float) -> bool:
    """Lock an open file or folder for this descriptor alone; it is given back when that is closed, however that ends.

    Returns:
        False where such files cannot be locked (Windows, some network drives).

    Raises:
        BlockingIOError: somebody else still holds it.
    """
    try:
        import fcntl
    except ImportError:
        return False
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)
        except OSError:
            return False


@contextmanager
def lock_file(path: Path, patience_s: float) -> Iterator[bool]:
    """Hold a file as a lock, which is there only meanwhile; says whether this system can lock at all.

    Raises:
        BlockingIOError: somebody else holds it.
        OSError: it cannot be made.
    """
    descriptor, locked = _opened_lock(path, patience_s)
    try:
        yield locked
    finally:
        if locked:
            path.unlink(missing_ok=True)  # before the lock is given back: who waits then sees that its file is gone
        os.close(descriptor)
        if not locked:
            with suppress(OSError):  # somebody else has it open, on Windows
                path.unlink()


def _opened_lock(path: Path, patience_s: float) -> tuple[int, bool]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            locked = take_lock(descriptor, patience_s)
            if not locked or _is_still(path, descriptor):
                return descriptor, locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one who held it has removed it meanwhile


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

"""Files without surprises.

Writing: whole or not at all, one process at a time, a full disk said in words. Reading: small files that
other programs may have broken are read, or refused with one error that names the remedy; the mark that some
editors put before UTF-8 is no part of a text.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import pandas as pd

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_WORDS = ("No space left", "Disk quota exceeded", "File too large")
_ROOM = 2**16
"""Where fewer bytes are free, a write that fails without a reason (NumPy's, PyTorch's) had no room."""

LOCK = ".lock"
"""Name of the lock file in a folder in which a process works."""

WAIT = 5.0
"""Seconds to wait for a process that writes for a moment, or that is just being ended."""

_HELD: dict[Path, Any] = {}  # the locks that this process holds


class FullDiskError(OSError):
    """There is no room to write; the message names the folder and the remedy."""


class InUseError(RuntimeError):
    """Another process works in a folder; the message names the folder, the process and the remedy."""


# -- room -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def room(folder: str | Path) -> Iterator[None]:
    """Raise FullDiskError where a write beneath `folder` fails for want of space.

    Libraries report a full disk each in its own way, some without naming the file or the reason.
    """
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        if not _no_room(error, Path(folder)):
            raise
        found = FullDiskError(
            f"{folder}: no space left on the disk; free some space there, or name a folder on another disk, "
            "then run the same again: what was finished is kept, and nothing half-written counts"
        )
        found.errno = errno.ENOSPC
        raise found from error


def _no_room(error: BaseException, folder: Path) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in _FULL or any(words in str(cause) for words in _FULL_WORDS):
            return True
        cause = cause.__cause__ or cause.__context__
    silent = isinstance(error, OSError | RuntimeError) and getattr(error, "errno", None) is None
    return silent and _free(folder) < _ROOM


def _free(folder: Path) -> int:
    there = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path("/"))
    return shutil.disk_usage(there).free


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A path to write to (`<name>.partial`), which becomes `target` in the end: whole or not at all.

    What is written may be a file or a folder; a folder takes the place of one that is there. FullDiskError
    where there is no room; nothing new is left then.
    """
    partial = target.with_name(f"{target.name}.partial")
    with room(target.parent):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)  # what a killed process left
            yield partial
            if partial.is_dir():
                remove(target)
            os.replace(partial, target)
        except BaseException as error:
            full = _no_room(error, target.parent)  # asked before the removal makes room
            with contextlib.suppress(OSError):
                remove(partial)
            if full and not isinstance(error, FullDiskError):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            raise


def make_folder(folder: Path, error: type[Exception], told: str, remedy: str) -> None:
    """Make a folder, with those above it, unless it is there.

    Raises
    ------
    Exception
        Of the kind `error`: it cannot be made. The message begins with `told` and ends with `remedy`.
    FullDiskError
        There is no room.
    """
    try:
        with room(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except FullDiskError:
        raise
    except OSError as found:
        reason = f"{found.strerror}: {found.filename}"
        raise error(f"{told} ({reason}); {remedy}, or see to its permissions") from found


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with appearing(target) as partial:
        shutil.copy(source, partial)


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# -- one process at a time ------------------------------------------------------------------------------


def hold(folder: Path, wait: float | None = None) -> bool:
    """Work alone in a folder until `release`, or until this process ends, whatever way it ends.

    Parameters
    ----------
    folder
        Made if there is none.
    wait
        Seconds to wait for another process; by default `WAIT`.

    Returns
    -------
    bool
        False where this process held it already.

    Raises
    ------
    InUseError
        Another process works there.
    """
    import filelock

    folder = folder.resolve()
    if folder in _HELD:
        return False
    # The operating system frees the lock of a killed process.
    lock = filelock.FileLock(folder / LOCK, timeout=WAIT if wait is None else wait, thread_local=False)
    try:
        with room(folder):
            while not lock.is_locked:
                # whoever held it may have removed the folder in the end
                folder.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    lock.acquire()
    except filelock.Timeout:
        raise InUseError(
            f"{folder}: {_holder(folder)} works in this folder; wait until it has ended, or end it (of a "
            "notebook: shut down its kernel), then run the same again; or name another folder"
        ) from None
    _HELD[folder] = lock
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    with contextlib.suppress(OSError):  # only to be told to others
        (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()} (since {now})")
    return True


def release(folder: Path) -> None:
    """Let other processes work in a folder; nothing where it is not held."""
    lock = _HELD.pop(folder.resolve(), None)
    if lock is not None:
        with contextlib.suppress(OSError):  # whoever waits sees that the file is gone, and makes its own
            (folder / LOCK).unlink()
        lock.release()


@contextlib.contextmanager
def only_one(folder: Path, wait: float | None = None) -> Iterator[None]:
    """Hold a folder for a moment; nothing changes where this process holds it already."""
    taken = hold(folder, wait)
    try:
        yield
    finally:
        if taken:
            release(folder)


def _holder(folder: Path) -> str:
    try:
        return (folder / LOCK).read_text() or "another process"
    except OSError:
        return "another process"


# -- reading --------------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """A value as Markdown that shows it to the letter: no markup, HTML, role or edge of a table."""
    return re.sub(r"[<>&|`{}\[\]$*\\\n]", lambda found: f"&#{ord(found.group())};", str(text))


def read_yaml(path: str | Path, error: type[Exception], remedy: str) -> dict[str, Any]:
    """The mapping in a YAML file; only plain values are built, never objects that the file names.

    Raises
    ------
    Exception
        Of the kind `error`: no text, no YAML, a tag that asks for an object, or no mapping. The message ends
        with `remedy`.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as broken:
        raise error(f"{path}: not readable as YAML ({_short(broken)}); {remedy}") from broken
    return _mapping(content, path, error, remedy)


def read_json(path: str | Path, error: type[Exception], remedy: str) -> dict[str, Any]:
    """The object in a JSON file; errors as for `read_yaml`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as broken:  # UnicodeDecodeError is a ValueError
        raise error(f"{path}: not readable as JSON ({_short(broken)}); {remedy}") from broken
    return _mapping(content, path, error, remedy)


def read_table(path: str | Path, error: type[Exception], remedy: str, columns: tuple[str, ...] = ()) -> Any:
    """A `.csv` or `.parquet` table that has `columns`; errors as for `read_yaml`.

    A last line of a `.csv` without its end of line counts as cut off: this project's writers end every line.
    """
    import pandas as pd

    path = Path(path)
    try:
        if path.suffix == ".parquet":
            table: pd.DataFrame = pd.read_parquet(path)
        elif not path.read_bytes().endswith(b"\n"):
            raise ValueError("the last line is cut off")
        else:
            table = pd.read_csv(path)
    except Exception as broken:  # the readers raise a dozen kinds
        raise error(f"{path}: no whole table ({_short(broken)}); {remedy}") from broken
    absent = [name for name in columns if name not in table]
    if absent:
        raise error(f"{path}: no column {', '.join(absent)}; {remedy}")
    return table


def _mapping(content: Any, path: str | Path, error: type[Exception], remedy: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        what = "empty" if content is None else f"a {type(content).__name__}"
        raise error(f"{path}: a mapping of names to values is needed, but it is {what}; {remedy}")
    return content


def _short(error: Exception) -> str:
    """The first line of an error, which may be long and end without a full stop."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__

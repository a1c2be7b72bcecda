"""What is computed once: arrays kept on disk under ``runs/cache``, found again by what they were made from.

An entry is a folder of `.npy` files whose name ends in a hash of everything that it depends on, so that none
can be stale. It appears whole or not at all and is read as a memory map. Beyond the bound the entries used
longest ago are deleted. The whole folder may be deleted at any time.

`ECHOVLSM_CACHE` names another folder; empty, it turns the cache off. `ECHOVLSM_CACHE_GB` is the bound (20).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from echovlsm.base.paths import project_root

FOLDER, BOUND = "ECHOVLSM_CACHE", "ECHOVLSM_CACHE_GB"
PARTIAL = ".partial-"
"""How names of folders begin that are not finished."""
_ABANDONED = 24 * 3600
"""Seconds after which a folder that was not finished is a killed process's."""


def folder() -> Path | None:
    """Where entries are kept; None where the cache is turned off."""
    named = os.environ.get(FOLDER)
    if named == "":
        return None
    return Path(named) if named else project_root() / "runs" / "cache"


def bound() -> float:
    """Bytes that all entries together may take: as asked for, and half of what the disk has free."""
    where = folder()
    if where is None:
        return 0
    asked = float(os.environ.get(BOUND, 20)) * 1e9
    there = next(parent for parent in (where, *where.parents) if parent.exists())
    return min(asked, shutil.disk_usage(there).free / 2 + _size(where))


def key_of(*parts: object) -> str:
    """Sixteen hexadecimal digits of a SHA-256 over the parts: arrays by type, shape and content."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).view(np.uint8).data if part.size else b"")
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def key_of_files(paths: Iterable[str | Path]) -> str:
    """Hash of files' places, sizes and times of change; the content is not read."""
    known = ((str(path), os.stat(path)) for path in paths)
    return key_of(*((path, stat.st_size, stat.st_mtime_ns) for path, stat in known))


def arrays(
    kind: str, key: str, make: Callable[[], Mapping[str, np.ndarray]], size: float = 0
) -> Mapping[str, np.ndarray]:
    """The arrays `make` returns, from disk where they are known.

    Parameters
    ----------
    kind, key
        Name of the entry: what it is, and `key_of` all that it depends on.
    make
        Called where there is no entry. It may return memory maps of files of its own.
    size
        Bytes expected, where they are many: beyond the bound nothing is kept.
    """
    where = folder()
    if where is None or size > bound():
        return make()
    entry = where / f"{kind}-{key}"
    if found := _read(entry):
        return found
    made = make()
    with contextlib.suppress(OSError):  # a full or read-only disk costs time, no result
        _keep(where, entry, made)
    return _read(entry) or made


def _read(entry: Path) -> dict[str, np.ndarray]:
    """The arrays of an entry; none where it is absent or no whole one."""
    try:
        found = {path.stem: np.load(path, mmap_mode="r") for path in sorted(entry.glob("*.npy"))}
        if found:
            os.utime(entry)
    except (OSError, ValueError):
        return {}
    return found


def _keep(where: Path, entry: Path, made: Mapping[str, np.ndarray]) -> None:
    where.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=where))
    try:
        for name, array in made.items():
            np.save(partial / f"{name}.npy", array)
        os.chmod(partial, 0o755)
        os.rename(partial, entry)
    except OSError:  # another process was first, or the disk is full
        shutil.rmtree(partial, ignore_errors=True)
    _trim(where, entry)


def _trim(where: Path, keep: Path) -> None:
    """Delete what killed processes left, and the entries used longest ago beyond the bound."""
    for path in where.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _ABANDONED:
                shutil.rmtree(path)
    entries = [path for path in where.iterdir() if path.is_dir() and not path.name.startswith(".")]
    entries.sort(key=lambda path: path.stat().st_mtime)
    total, most = sum(map(_size, entries)), bound()
    for entry in entries:
        if total <= most:
            return
        if entry != keep:
            total -= _size(entry)
            shutil.rmtree(entry, ignore_errors=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*.npy")) if path.is_dir() else 0

"""Work spread over processes: results in order, and no process outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def usable_cores() -> int:
    """Cores that this process may use: a container or a scheduler may lend fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int | None = None,
    *,
    least: int = 1,
    chunk: int = 1,
) -> Iterator[Any]:
    """What `function` returns of every item, in the items' order, as it becomes known.

    Parameters
    ----------
    function, items
        Both must be picklable where `workers` is not 1.
    workers
        Processes; None: as many as there are usable cores. With one, or with fewer items than `least`, the
        work is done in this process.
    chunk
        Items that a process takes at a time.

    Raises
    ------
    ValueError
        Fewer than one worker. What `function` raises is raised at its item's turn, and ends the rest.
    """
    workers = usable_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers={workers}: use at least one process")
    workers = min(workers, -(-len(items) // chunk))
    if workers <= 1 or len(items) < least:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
        yield from pool.map(function, items, chunksize=chunk)


def _end_with_parent() -> None:
    """Make a worker end when its parent is killed; a pool's workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

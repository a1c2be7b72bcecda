"""Two processes at once in one place: one works, the other waits or says so."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .kills import Undisturbed
from .processes import ask, do, start
from .stages import Stage

BUSY = ("another process", "works in this folder", "exists already")
"""What a process says that gives way."""


def pairs(
    stage: Stage,
    place: Path,
    inputs: Path,
    reference: Undisturbed,
    count: int,
    seed: int,
    log: Path,
) -> Iterator[dict[str, Any]]:
    """Start the work twice in `count` folders, at once or one at a random moment of the other.

    In every other pair the second process waits a moment only, as if the first took long.
    """
    rng = random.Random(f"{seed} {stage.name} pair")
    for number in range(1, count + 1):
        folder = place / f"pair-{number}"
        folder.mkdir(parents=True)
        offset = 0.0 if number <= count // 2 else rng.random() * reference.seconds
        patience = 0.05 if number % 2 else 60.0

        def work(folder: Path = folder, patience: float = patience) -> None:
            from echovlsm.base import files

            files.WAIT = patience
            stage.work(folder, inputs)

        first = start(work, log)
        time.sleep(offset)
        second = start(work, log)
        said = [first.outcome(), second.outcome()]
        parts = ask(lambda folder=folder: stage.parts(folder), log)
        again = do(lambda folder=folder: stage.work(folder, inputs), log)
        equal = "error" not in again and stage.equal(
            ask(lambda folder=folder: stage.results(folder), log), reference.results
        )
        yield {
            "stage": stage.name,
            "seed": seed,
            "pair": number,
            "offset_seconds": round(offset, 3),
            **{name: _outcome(one) for name, one in zip(("first", "second"), said, strict=True)},
            "half_written": "; ".join(stage.half_written(parts, reference.results)),
            "equal": equal,
            "said": " | ".join(_told(one["message"], folder) for one in said if "error" in one),
        }
        for left in place.glob(f"pair-{number}*"):
            shutil.rmtree(left, ignore_errors=True)


def _told(message: str, folder: Path) -> str:
    """A message without what is this machine's and this moment's."""
    message = re.sub(r"process \d+ on \S+ \(since [^)]*\)", "process N on HOST (since TIME)", message)
    return re.sub(r"partial-\w+", "partial-X", message.replace(str(folder), "FOLDER"))


def _outcome(said: dict[str, Any]) -> str:
    if "error" not in said:
        return "worked"
    return "said so" if any(words in said["message"] for words in BUSY) else f"failed: {said['error']}"

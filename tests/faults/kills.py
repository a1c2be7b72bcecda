"""SIGKILL at random moments: what is found, and whether doing the work again gives the same."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import Watch, alone, ask, do, start
from .stages import Stage


@dataclass(frozen=True)
class Undisturbed:
    """What the work gives and takes when nothing happens."""

    results: dict[str, Any]
    seconds: float
    """The shortest of its times."""
    steps: int
    """Times that it opens a file to write, renames, deletes, or makes a folder."""


def undisturbed(stage: Stage, place: Path, inputs: Path, log: Path, times: int = 2) -> Undisturbed:
    """Do the work, `times` times, which must give the same."""
    seconds, steps, found = [], [], []
    for number in range(times):
        folder = place / f"whole-{number}"
        folder.mkdir(parents=True)

        def work(folder: Path = folder) -> int:
            watch = Watch(folder)
            sys.addaudithook(watch)
            stage.work(folder, inputs)
            return watch.steps

        said = do(work, log)
        if "error" in said:
            raise RuntimeError(f"{stage.name} undisturbed: {said['error']}: {said['message']} (see {log})")
        seconds.append(said["seconds"])
        steps.append(said["result"])
        found.append(ask(lambda folder=folder: stage.results(folder), log))
    if not stage.equal(found[0], found[-1]):
        raise RuntimeError(f"{stage.name}: two undisturbed runs differ, so that nothing can be compared")
    shutil.rmtree(place)
    return Undisturbed(found[0], min(seconds), min(steps))


def kills(
    stage: Stage,
    place: Path,
    inputs: Path,
    reference: Undisturbed,
    count: int,
    seed: int,
    log: Path,
    steps: bool = False,
) -> Iterator[dict[str, Any]]:
    """Kill `count` times, each time in a fresh folder, and do the work again.

    Moments are uniform over the undisturbed time; with `steps`, uniform over its steps (`Watch`), so that a
    kill falls between two things done to files. Every other kill takes the main process only, whose workers
    then have to end by themselves, and the others the whole session. A run that had ended before its moment
    is no kill, and another moment is drawn.
    """
    rng, done = random.Random(f"{seed} {stage.name} {steps}"), 0
    for attempt in range(5 * count):
        if done == count:
            return
        share = rng.random()
        step = 1 + int(share * reference.steps) if steps else 0
        folder = place / f"kill-{attempt}"
        folder.mkdir(parents=True)

        def work(folder: Path = folder, step: int = step) -> None:
            if step:
                sys.addaudithook(Watch(folder, step))
            stage.work(folder, inputs)

        child = start(work, log)
        whole = attempt % 2 == 0 and not steps
        if child.dies() if steps else child.kill_at(share * reference.seconds, whole):
            done += 1
            yield {
                "stage": stage.name,
                "seed": seed,
                "kill": done,
                "at": "step" if steps else "moment",
                "share": round(share, 4),
                "seconds": None if steps else round(share * reference.seconds, 3),
                "step": step or None,
                "killed": "session" if whole else "process",
                **_look(stage, folder, inputs, reference.results, log),
                "workers_ended": alone(child.pid),
            }
        for left in place.glob(f"kill-{attempt}*"):
            shutil.rmtree(left, ignore_errors=True)
    if done < count:
        raise RuntimeError(f"{stage.name}: only {done} of {5 * count} runs were still going when killed")


def _look(stage: Stage, folder: Path, inputs: Path, reference: dict[str, Any], log: Path) -> dict[str, Any]:
    found = ask(lambda: stage.state(folder), log)
    parts = ask(lambda: stage.parts(folder), log)
    again = do(lambda: stage.work(folder, inputs), log)
    equal = "error" not in again and stage.equal(ask(lambda: stage.results(folder), log), reference)
    return {
        "found": found,
        "half_written": "; ".join(stage.half_written(parts, reference)),
        "equal": equal,
        "said": f"{again['error']}: {again['message']}" if "error" in again else "",
    }

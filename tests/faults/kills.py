"""SIGKILL at random moments: what is found, and whether doing the work again gives the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.processes import alone, ask, do, start
from tests.faults.stages import Stage


def undisturbed(stage: Stage, place: Path, inputs: Path, log: Path) -> tuple[dict[str, Any], float]:
    """Results and seconds of the work when nothing happens; the shorter of two times."""
    times, found = [], []
    for name in ("first", "second"):
        folder = place / name
        folder.mkdir(parents=True)
        said = do(lambda folder=folder: stage.work(folder, inputs), log)
        if "error" in said:
            raise RuntimeError(f"{stage.name} undisturbed: {said['error']}: {said['message']} (see {log})")
        times.append(said["seconds"])
        found.append(ask(lambda folder=folder: stage.results(folder), log))
    if not stage.equal(*found):
        raise RuntimeError(f"{stage.name}: two undisturbed runs differ, so that nothing can be compared")
    shutil.rmtree(place)
    return found[0], min(times)


def kills(
    stage: Stage,
    place: Path,
    inputs: Path,
    reference: dict[str, Any],
    seconds: float,
    count: int,
    seed: int,
    log: Path,
) -> Iterator[dict[str, Any]]:
    """Kill `count` times, each time in a fresh folder, and do the work again.

    Moments are uniform over the undisturbed time. Every other kill takes the main process only, whose workers
    then have to end by themselves, and the others the whole session. A run that had ended before its moment
    is no kill, and another moment is drawn.
    """
    rng, done = random.Random(f"{seed} {stage.name}"), 0
    for attempt in range(5 * count):
        if done == count:
            return
        share = rng.random()
        folder = place / f"kill-{attempt}"
        folder.mkdir(parents=True)
        child = start(lambda folder=folder: stage.work(folder, inputs), log)
        group = attempt % 2 == 0
        if child.kill_at(share * seconds, group):
            done += 1
            yield {
                "stage": stage.name,
                "seed": seed,
                "kill": done,
                "seconds": round(share * seconds, 3),
                "undisturbed_seconds": round(seconds, 3),
                "killed": "session" if group else "process",
                **_look(stage, folder, inputs, reference, log),
                "workers_ended": alone(child.pid),
            }
        for left in place.glob(f"kill-{attempt}*"):
            shutil.rmtree(left, ignore_errors=True)
    if done < count:
        raise RuntimeError(f"{stage.name}: only {done} of {5 * count} runs were still going when killed")


def _look(
    stage: Stage, folder: Path, inputs: Path, reference: dict[str, Any], log: Path
) -> dict[str, Any]:
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

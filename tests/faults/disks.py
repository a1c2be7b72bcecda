"""A full disk: a small one, in memory, that the work fills."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .processes import ask, do, start
from .stages import Stage

REMEDY = "free some space"


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Path]:
    """A disk of its own at `place`; RuntimeError where this system does not let us have one."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"no small disk here: {error}") from error
    if done.returncode:
        raise RuntimeError(f"no small disk here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


def possible(place: Path) -> bool:
    """Whether a small disk can be had."""
    try:
        with small_disk(place / "try", 64):
            return True
    except RuntimeError:
        return False


def enlarge(place: Path, kibibytes: int) -> None:
    """Make room on a small disk."""
    subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", str(place)], check=True)


def needed(stage: Stage, place: Path, inputs: Path, log: Path) -> int:
    """Kibibytes that the work takes at its most."""
    most, ended = 0, threading.Event()
    with small_disk(place / "large", 2**20) as disk:

        def watch() -> None:
            nonlocal most
            while not ended.is_set():
                most = max(most, shutil.disk_usage(disk).used // 1024)
                time.sleep(0.002)

        child = start(lambda: stage.work(disk, inputs), log)
        watcher = threading.Thread(target=watch)  # after the fork
        watcher.start()
        said = child.outcome()
        ended.set()
        watcher.join()
        if "error" in said:
            raise RuntimeError(f"{stage.name} on a large disk: {said['error']}: {said['message']}")
    _tidy(place, "large")
    return most


def full_disks(
    stage: Stage,
    place: Path,
    inputs: Path,
    reference: dict[str, Any],
    count: int,
    seed: int,
    log: Path,
) -> Iterator[dict[str, Any]]:
    """Let the work run into the end of `count` disks of random size, make room, and do it again."""
    need, rng = needed(stage, place, inputs, log), random.Random(f"{seed} {stage.name}")
    for number in range(1, count + 1):
        # one disk in each `count`-th part of what is needed
        size = max(4, round(need * (number - 1 + rng.random()) / count / 4) * 4)
        name = f"disk-{number}"
        with small_disk(place / name, size) as disk:
            said = do(lambda disk=disk: stage.work(disk, inputs), log)
            parts = ask(lambda disk=disk: stage.parts(disk), log)
            left = [path.name for path in disk.rglob("*partial*")]
            enlarge(disk, 2**20)
            again = do(lambda disk=disk: stage.work(disk, inputs), log)
            equal = "error" not in again and stage.equal(
                ask(lambda disk=disk: stage.results(disk), log), reference
            )
            message = said.get("message", "")
            yield {
                "stage": stage.name,
                "seed": seed,
                "disk": number,
                "kibibytes": size,
                "needed_kibibytes": need,
                "error": said.get("error", ""),
                "names_folder": str(disk) in message,
                "names_remedy": REMEDY in message,
                "half_written": "; ".join([*stage.half_written(parts, reference), *left]),
                "equal": equal,
                "said": message.replace(str(disk), "FOLDER"),
            }
        _tidy(place, name)


def _tidy(place: Path, name: str) -> None:
    for left in place.glob(f"{name}-*"):
        shutil.rmtree(left, ignore_errors=True)

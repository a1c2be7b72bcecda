"""Children, forked from a process that has imported everything: a trial takes no longer than its work.

The parent computes nothing itself, not even a comparison: a fork of a process that has run PyTorch or Arrow
may hang.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echovlsm.study import warm

LIBRARIES: tuple[str, ...] = (
    *warm.LIBRARIES,
    "diffusers.training_utils",
    "diffusers.optimization",
    "nbformat",
    "filelock",
    "echovlsm.evaluation.runs",
    "echovlsm.phantom",
    "echovlsm.training.strategies",
    "echovlsm.training",
    "echovlsm.synthesis.sampling",
    "echovlsm.synthesis.trial",
)
LIMIT = 300.0
"""Seconds after which a child that was not to be killed counts as hanging."""


def warm_up() -> None:
    """Import what the children need."""
    os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg", JE_ARROW_MALLOC_CONF="background_thread:false")
    for name in LIBRARIES:
        importlib.import_module(name)


@dataclass
class Child:
    """A piece of work in a process of its own."""

    pid: int
    pipe: int
    began: float

    def kill_at(self, moment: float, whole_group: bool = True) -> bool:
        """SIGKILL at `moment` seconds after the work began; False if it had ended before."""
        left = self.began + moment - time.perf_counter()
        ended = bool(select.select([self.pipe], [], [], max(left, 0))[0])
        if not ended:
            (os.killpg if whole_group else os.kill)(self.pid, signal.SIGKILL)
        self._wait()
        return not ended

    def dies(self) -> bool:
        """Wait for its end; whether it was killed before the work was done."""
        said = self.outcome()
        return said.get("error") == "Killed"

    def outcome(self) -> dict[str, Any]:
        """What the work returned, as `result`, or `error` and `message`; and its `seconds`."""
        parts = []
        while True:
            if not select.select([self.pipe], [], [], LIMIT)[0]:
                os.killpg(self.pid, signal.SIGKILL)
                break
            part = os.read(self.pipe, 2**16)
            if not part:
                break
            parts.append(part)
        self._wait()
        if not parts:
            return {"error": "Killed", "message": "the process ended without a word", "seconds": 0.0}
        return json.loads(b"".join(parts))

    def _wait(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self.pipe)


class Watch:
    """Counts what a process does to the files of a folder, and ends it without warning at one of these steps.

    Steps are what Python's audit events tell: opening to write, renaming, deleting, making a folder.
    """

    def __init__(self, folder: Path, die_at: int = 0) -> None:
        self.folder, self.die_at, self.steps = str(folder), die_at, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._counts(event, arguments):
            return
        self.steps += 1
        if self.steps == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _counts(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return False
        elif event in ("os.remove", "os.rmdir"):
            path, descriptor = arguments
            if descriptor != -1:  # relative to an open folder: a tree that is being deleted
                return True
        elif event in ("os.rename", "os.mkdir"):
            path = arguments[0]
        else:
            return False
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self.folder)


def start(work: Callable[[], Any], log: Path) -> Child:
    """Fork a child that does `work`, in a session of its own; returns when the work begins."""
    sys.stdout.flush()
    sys.stderr.flush()
    receive, send = os.pipe()
    begin, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        _work(work, log, begun, send)
    for end in (send, begun):
        os.close(end)
    os.read(begin, 1)
    os.close(begin)
    return Child(pid, receive, time.perf_counter())


def _work(work: Callable[[], Any], log: Path, begun: int, send: int) -> None:
    """In the child."""
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(output, stream)
        import torch

        torch.set_num_threads(1)
        os.write(begun, b"b")
        clock = time.perf_counter()
        try:
            said = {"result": work()}
        except BaseException as error:
            traceback.print_exc()
            said = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.flush()
        sys.stderr.flush()
        data = json.dumps(said | {"seconds": time.perf_counter() - clock}).encode()
        while data:
            data = data[os.write(send, data) :]
    finally:
        os._exit(0)


def do(work: Callable[[], Any], log: Path) -> dict[str, Any]:
    """The outcome of a piece of work done by a child."""
    return start(work, log).outcome()


def ask(work: Callable[[], Any], log: Path) -> Any:
    """The result of a piece of work done by a child, which has to succeed."""
    said = do(work, log)
    if "error" in said:
        raise RuntimeError(f"{said['error']}: {said['message']} (see {log})")
    return said["result"]


def alone(session: int, seconds: float = 10.0) -> bool:
    """Whether all processes of a killed child's session end by themselves within some seconds."""
    limit = time.monotonic() + seconds
    while any(_session(entry) == session for entry in Path("/proc").glob("[0-9]*")):
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


def _session(entry: Path) -> int | None:
    try:
        state, _, _, session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(session)


def descendants(pid: int) -> list[int]:
    """All processes below one, children before grandchildren."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(entry.name))
    found, ends = [], [pid]
    while ends:
        ends = [child for end in ends for child in parents.get(end, [])]
        found += ends
    return found

"""How a number came about: commit, packages, machine, and hashes of the code and the weights behind it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

from echovlsm.base import rooms
from echovlsm.base.paths import project_root, resolve

_CONFIGS = ("config.json", "scheduler_config.json")

_PACKAGES = [
    "torch",
    "transformers",
    "accelerate",
    "monai",
    "numpy",
    "scipy",
    "pandas",
    "nibabel",
    "papermill",
]


class RunError(RuntimeError):
    """A run folder that cannot be used as asked."""


def commit() -> str:
    """Short hash of the commit, with `+` when tracked files differ from it; `unknown` without git."""

    def git(*words: str) -> str:
        options = {"cwd": project_root(), "capture_output": True, "text": True, "check": True}
        return subprocess.run(["git", *words], **options).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def package_versions() -> dict[str, str]:
    """Python and the packages that the numbers depend on."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **versions}


def device_name() -> str:
    """The accelerator's name, or the processor with its number of threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return cpu_name(torch.get_num_threads())


def cpu_name(threads: int | None) -> str:
    """The processor with its number of threads, where that is known."""
    return "CPU" if not threads else f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def peak_memory() -> float:
    """The most memory held so far, GiB: of the accelerator, or of this process where there is none."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def code_hash(*names: str) -> str:
    """Short sha256 of the code of rooms and of what they rest on; by default of all that makes numbers.

    `base` makes none and does not count: a new colour of figures trains nothing again.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in rooms.modules(*(names or ("synthesis", "evaluation"))):
        if path.parent.name != "base":
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def weights_hash(weights: str | Path) -> str:
    """Short sha256 of a weights folder's tensors and config; for a hub id, the id itself."""
    if not str(weights):
        return "random"
    folder = resolve(weights)
    if not folder.is_dir():
        return f"hub:{weights}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".bin"} or path.name in _CONFIGS:
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def set_up(threads: int, seed: int, mixed_precision: str = "no") -> None:
    """Fix thread count and seeds, which together make a CPU run repeat bit by bit.

    Raises
    ------
    RunError
        This machine cannot compute in `mixed_precision`.
    """
    import torch
    from accelerate.utils import set_seed

    check_precision(mixed_precision)
    if threads > 0:
        torch.set_num_threads(threads)
    set_seed(seed)


def check_precision(mixed_precision: str) -> None:
    """RunError for ``fp16`` where there is no GPU: Accelerate would train in float32 and say nothing."""
    if mixed_precision != "fp16":
        return
    from accelerate import PartialState

    if PartialState().device.type == "cpu":
        raise RunError(
            "mixed_precision: fp16 needs a GPU, and there is none here; choose bf16, which processors "
            "compute too, or no"
        )

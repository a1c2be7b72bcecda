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

_RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "monai",
    "numpy",
    "scipy",
    "pandas",
    "nibabel",
    "papermill",
)


class RunError(RuntimeError):
    """A run folder that cannot be used as asked."""


def commit() -> str:
    """Short hash of the commit, with `+` when tracked files differ from it; `unknown` without git."""
    try:
        options = {"cwd": project_root(), "capture_output": True, "text": True, "check": True}
        head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], **options).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], **options
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def package_versions() -> dict[str, str]:
    """Python and the packages that the numbers depend on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _RECORDED_PACKAGES},
    }


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
    """The most memory that this process has held so far, GiB; that of the accelerator where there is one."""
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
    """Short sha256 of the code that makes a run's numbers.

    Parameters
    ----------
    names
        The rooms that a chapter shows; what they rest on counts too. By default all that makes numbers.
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
    for path in sorted(
        p for p in folder.iterdir() if p.suffix in {".safetensors", ".bin"} or p.name in _CONFIGS
    ):
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
    """Refuse ``fp16`` where there is no GPU: Accelerate would train in float32 and say nothing.

    Raises
    ------
    RunError
        Names the parameter and what to choose.
    """
    if mixed_precision != "fp16":
        return
    from accelerate import PartialState

    if PartialState().device.type == "cpu":
        raise RunError(
            "mixed_precision: fp16 needs a GPU, and there is none here; choose bf16, which processors "
            "compute too, or no"
        )

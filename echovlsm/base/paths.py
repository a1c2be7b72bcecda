"""Where things lie: the project's root, paths as parameters mean them, and the folder of a run."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """The folder of `_config.yml`: ECHOVLSM_ROOT, or above the working folder, or above the package."""
    named = os.environ.get("ECHOVLSM_ROOT")
    if named:
        return Path(named)
    for start in (Path.cwd(), Path(__file__).parent):
        for folder in (start.resolve(), *start.resolve().parents):
            if (folder / "_config.yml").is_file() and (folder / "notebooks").is_dir():
                return folder
    return Path.cwd()


def resolve(path: str | Path, root: Path | None = None) -> Path:
    """A path as the parameters mean it: absolute, from home, or relative to the project's root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else (root or project_root()) / path


def run_path(
    profile: str, cohort: str | Path, model: str, prompt: str, strategy: str, encoders: str, seed: int
) -> Path:
    """Where a cell of the study lives.

    ``runs/<profile>/<cohort>/<model>-<prompt>-<strategy>-<encoders>-seed<seed>``
    """
    name = f"{model}-{prompt}-{strategy.replace(':', '_')}-{encoders}-seed{seed}"
    return resolve("runs") / profile / Path(cohort).name / name

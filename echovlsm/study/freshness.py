"""Freshness: what a page of the book was made from, and whether that is still what lies on disk.

Jupyter Book's own execution cache sees only a notebook's code. Here a page's key covers its notebook, the
package, the parameters, `requirements.lock`, the cohort and the weights. `record_freshness` writes it down
beside the executed notebook; `page_facts` compares it with what lies on disk when the book is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from echovlsm.base import files, paths, provenance, rooms
from echovlsm.cohort import CohortError, cohort_hash
from echovlsm.study.parameters import notebook_defaults, read_profile


class BookError(RuntimeError):
    """The book cannot be built; the message names the page and the remedy."""


def digest(*parts: bytes | str) -> str:
    """Twelve hexadecimal digits of the SHA-256 over parts, each with its length."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big"))
        total.update(data)
    return total.hexdigest()[:12]


@lru_cache(maxsize=32)
def cohort_digest(folder: Path) -> str | None:
    """Hash of a cohort's content; None where the folder is gone, so that its freshness cannot be told."""

    try:
        return cohort_hash(folder)
    except (CohortError, OSError):
        return None


def freshness_parts(
    root: Path, notebook: Path, parameters: Mapping[str, Any], executed: Path | None = None
) -> dict[str, str | None]:
    """What a page depends on, one short hash each, from what lies on disk now.

    Parameters
    ----------
    root
        The project.
    notebook
        The notebook's source. Only its cells count, not outputs or metadata.
    parameters
        The parameters of its execution; `cohort`, `weights`, `results`, `benchmarks` and `phantom_results`
        name folders whose content counts.
    executed
        The executed notebook; the `weights/` beside it count where there is no parameter `weights`.

    Returns
    -------
    dict
        `notebook, package, parameters, lock, data, weights, results`; None for what it has not.
    """
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    cohort, weights, results = parameters.get("cohort"), parameters.get("weights"), recorded(parameters)
    # A page without starting weights of its own rests on those of the run that it lies in.
    folder = paths.resolve(weights, root) if weights else executed.with_name("weights") if executed else None
    return {
        "notebook": digest(*(part for cell in cells for part in (cell.cell_type, cell.source))),
        "package": digest(
            *(
                part
                for path in rooms.modules_of(notebook.stem, root / "echovlsm")
                for part in (path.relative_to(root).as_posix(), path.read_bytes())
            ),
        ),
        "parameters": digest(json.dumps(dict(parameters), sort_keys=True, default=str)),
        "lock": digest((root / "requirements.lock").read_bytes()),
        "data": cohort_digest(paths.resolve(cohort, root)) if cohort else None,
        "weights": provenance.weights_hash(folder) if folder and folder.is_dir() else None,
        "results": _folder_digest(paths.resolve(results, root)) if results else None,
    }


def recorded(parameters: Mapping[str, Any]) -> str | None:
    """The folder of recorded results that a page shows."""
    return next(filter(None, map(parameters.get, ("results", "benchmarks", "phantom_results"))), None)


def _folder_digest(folder: Path) -> str:
    """Hash of the names and contents of all files in a folder of recorded results."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest(*(part for f in found for part in (f.relative_to(folder).as_posix(), f.read_bytes())))


def record_path(executed: Path) -> Path:
    """Where the account of an executed notebook lies."""
    return executed.with_name(f"{executed.stem}.freshness.json")


def profile_in(root: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The profile that an execution was of; empty where there is no such file."""
    path = root / "notebooks" / "profiles" / f"{parameters.get('profile') or parameters.get('scale')}.yaml"
    return read_profile(path) if path.is_file() else {}


def read_executed(executed: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """An executed notebook, Papermill's record of it, and the `run.yaml` beside it (or an empty one)."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    run = executed.with_name("run.yaml")
    return (
        notebook,
        dict(notebook.metadata.get("papermill", {})),
        files.read_yaml(run, BookError, "execute the notebook again") if run.is_file() else {},
    )


def record_freshness(
    executed: str | Path,
    notebook: str | Path | None = None,
    *,
    device: str | None = None,
    root: str | Path | None = None,
) -> Path:
    """Write down what an execution depended on; call it right after Papermill has ended.

    Parameters
    ----------
    executed
        The notebook that Papermill wrote. A `run.yaml` beside it adds device and packages.
    notebook
        Its source; by default `notebooks/` and the same name.
    device
        The device in words; by default that of `run.yaml`, else this machine's.
    root
        The project; by default the one of the working folder.

    Returns
    -------
    Path
        `<name>.freshness.json` beside the executed notebook.
    """
    root = Path(root) if root else paths.project_root()
    executed = Path(executed).resolve()
    source = Path(notebook).resolve() if notebook else root / "notebooks" / executed.name
    for path in (executed, source):
        if not path.is_file():
            raise BookError(f"{path} does not exist: freshness is recorded after a notebook was executed")
    _, papermill, run = read_executed(executed)
    parameters = {**notebook_defaults(source), **papermill.get("parameters", {})}
    profile = profile_in(root, parameters)
    cohort_digest.cache_clear()
    parts = freshness_parts(root, source, parameters, executed)
    record = {
        "key": digest(json.dumps(parts, sort_keys=True)),
        "parts": parts,
        "executed": papermill.get("end_time"),
        "parameters": parameters,
        # a later change of the profile changes these, and makes the page stale
        "from_profile": sorted(name for name, value in parameters.items() if profile.get(name, ...) == value),
        "commit": provenance.commit(),
        "device": device or run.get("device") or _device(parameters),
        "packages": run.get("packages") or provenance.package_versions(),
    }
    target = record_path(executed)
    with files.appearing(target) as partial:
        partial.write_text(json.dumps(record, indent=1, default=str) + "\n")
    return target


def _device(parameters: Mapping[str, Any]) -> str:
    """The device in words; torch, which takes seconds to import, is asked only where there may be a GPU."""
    if any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return provenance.device_name()
    return provenance.cpu_name(parameters.get("threads"))

"""Execute a notebook of the study with Papermill, and record what its page was made from.

``echovlsm execute`` is like ``papermill``, but parameters are checked before the kernel starts, and a failed
notebook never looks like a finished one.

Jupyter Book's own execution cache sees only a notebook's code. Here a page's key covers its notebook, the
package, the parameters, `requirements.lock`, the cohort, the weights and the recorded results.
`record_freshness` writes it down beside the executed notebook; the book compares it with what lies on disk
when it is built (`freshness_parts`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm.base import files, paths, provenance, rooms
from echovlsm.cohort import CohortError, cohort_hash
from echovlsm.study import warm
from echovlsm.study.parameters import (
    check_values,
    notebook_defaults,
    notebook_parameters,
    profile_of,
)

LOOK = "look"
"""Tag of cells that only show something, and on which no later cell rests."""

PAUSE = 2
"""Minutes in which nothing starts, after which an execution counts as another occasion."""

LEFT_OUT = "*Cells that only show something were left out of this execution.*"
"""What a notebook says that was executed without them."""


def execute(
    notebook: str | Path,
    out: str | Path,
    parameters: Mapping[str, Any],
    *,
    look: bool = True,
    progress: bool = True,
) -> Path:
    """Execute a notebook with Papermill after checking its parameters.

    Parameters
    ----------
    notebook
        Source notebook with a cell tagged `parameters`.
    out
        Where the executed notebook goes. A failed one is kept beside it as `*.failed.ipynb`.
    look
        Whether cells tagged `LOOK` are executed; where they are not, the notebook that is kept says so.

    Raises
    ------
    ParameterError
        Before anything runs.
    papermill.PapermillExecutionError
        A cell failed.
    """
    import nbformat
    import papermill

    notebook, out = paths.resolve(notebook), paths.resolve(out)
    check_values(parameters, notebook_parameters(notebook), notebook.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".failed.ipynb")
    source = notebook
    if not look:
        reduced = nbformat.read(notebook, as_version=4)
        kept = [cell for cell in reduced.cells if LOOK not in cell.metadata.get("tags", [])]
        reduced.cells = [kept[0], nbformat.v4.new_markdown_cell(LEFT_OUT), *kept[1:]]
        source = partial
        nbformat.write(reduced, source)
    try:
        papermill.execute_notebook(
            str(source),
            str(partial),
            parameters=dict(parameters),
            cwd=str(paths.project_root()),
            progress_bar=progress,
            kernel_name="python3",
            **warm.kernel_options(),
        )
    except OSError:  # of writing the notebook; what a cell raises comes as another error
        with files.room(out.parent):
            raise
    os.replace(partial, out)
    record_freshness(out, notebook)
    return out


def schedule(folder: str | Path) -> pd.DataFrame:
    """When which notebook below a folder was executed, as Papermill wrote it into them; not failed ones.

    Returns
    -------
    DataFrame
        One row a notebook, in order of time: `notebook` (name), `run` (name of its folder), `start` and `end`
        in minutes since the first start of the longest stretch of work without a gap above `PAUSE` minutes:
        a notebook that was executed again later is not on it.
    """
    rows = []
    for path in sorted(paths.resolve(folder).rglob("*.ipynb")):
        about = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("papermill", {})
        if about.get("end_time") and not path.name.endswith(".failed.ipynb"):
            times = {key: pd.Timestamp(about[f"{key}_time"]) for key in ("start", "end")}
            rows.append({"notebook": path.stem, "run": path.parent.name, **times})
    if not rows:
        return pd.DataFrame(columns=["notebook", "run", "start", "end"])
    table = pd.DataFrame(rows).sort_values("start", ignore_index=True)
    minutes = {key: (table[key] - table["start"].min()).dt.total_seconds() / 60 for key in ("start", "end")}
    table = table.assign(**minutes)
    idle = table["start"] - table["end"].cummax().shift(fill_value=0)
    stretch = (idle > PAUSE).cumsum()
    table = table[stretch == stretch.mode().iloc[-1]].reset_index(drop=True)
    first = table["start"].min()
    return table.assign(start=table["start"] - first, end=table["end"] - first)


# -- freshness ------------------------------------------------------------------------------------------


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
        The source, of which the cells count, not outputs or metadata.
    parameters
        Of its execution; `cohort`, `weights` and those of `recorded` name folders whose content counts.
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
        "package": _digest_of(rooms.modules_of(notebook.stem, root / "echovlsm"), root),
        "parameters": digest(json.dumps(dict(parameters), sort_keys=True, default=str)),
        "lock": digest((root / "requirements.lock").read_bytes()),
        "data": cohort_digest(paths.resolve(cohort, root)) if cohort else None,
        "weights": provenance.weights_hash(folder) if folder and folder.is_dir() else None,
        "results": _digest_of_folder(paths.resolve(results, root)) if results else None,
    }


def recorded(parameters: Mapping[str, Any]) -> str | None:
    """The folder of recorded results that a page shows."""
    return next(filter(None, map(parameters.get, ("results", "benchmarks", "phantom_results"))), None)


def _digest_of(found: Iterable[Path], root: Path) -> str:
    """Hash of the names below `root` and the contents of files, in their order."""
    return digest(
        *(part for file in found for part in (file.relative_to(root).as_posix(), file.read_bytes()))
    )


def _digest_of_folder(folder: Path) -> str:
    return _digest_of(sorted(path for path in folder.rglob("*") if path.is_file()), folder)


def record_path(executed: Path) -> Path:
    """Where the account of an executed notebook lies."""
    return executed.with_name(f"{executed.stem}.freshness.json")


def profile_in(root: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The profile that an execution was of; empty where there is no such file."""
    return profile_of(parameters.get("profile") or parameters.get("scale"), root)


def read_executed(executed: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Papermill's record of an executed notebook, and the `run.yaml` beside it; empty where there is none."""
    import nbformat

    notebook, run = nbformat.read(executed, as_version=4), executed.with_name("run.yaml")
    record = files.read_yaml(run, BookError, "execute the notebook again") if run.is_file() else {}
    return dict(notebook.metadata.get("papermill", {})), record


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
    papermill, run = read_executed(executed)
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

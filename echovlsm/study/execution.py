"""Execute a notebook of the study with Papermill.

``echovlsm execute`` is like ``papermill``, but parameters are checked before the kernel starts, a failed
notebook never looks like a finished one, and what the page was made from is recorded beside it for the book's
freshness line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm.base import files, paths
from echovlsm.study import warm
from echovlsm.study.freshness import record_freshness
from echovlsm.study.parameters import (
    check_values,
    notebook_parameters,
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
    parameters
        Values for any of the declared parameters.
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
    """When which notebook was executed, as Papermill wrote it into the executed notebooks.

    Parameters
    ----------
    folder
        Folder of executed notebooks, at any depth; failed ones are left out.

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

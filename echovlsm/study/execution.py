"""Execute a notebook of the study with Papermill.

``echovlsm execute`` is like ``papermill``, but parameters are checked before the kernel starts, a failed
notebook never looks like a finished one, and what the page was made from is recorded beside it for the book's
freshness line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echovlsm.base import files, paths
from echovlsm.study import warm
from echovlsm.study.freshness import record_freshness
from echovlsm.study.parameters import (
    check_values,
    notebook_parameters,
)


def execute(
    notebook: str | Path, out: str | Path, parameters: Mapping[str, Any], *, progress: bool = True
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

    Raises
    ------
    ParameterError
        Before anything runs.
    papermill.PapermillExecutionError
        A cell failed.
    """
    import papermill

    notebook, out = paths.resolve(notebook), paths.resolve(out)
    check_values(parameters, notebook_parameters(notebook), notebook.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".failed.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook),
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

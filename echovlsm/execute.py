"""Execute a study notebook with Papermill: ``python -m echovlsm.execute NOTEBOOK OUT -f FILE -p NAME VALUE``.

Like ``papermill``, but parameters are checked before the kernel starts, a failed notebook never looks like a
finished one, and what the page was made from is recorded beside it for the book's freshness line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echovlsm import files, warm


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
    _without_uri_grammar()
    import papermill

    from echovlsm.freshness import record_freshness
    from echovlsm.parameters import check_values, notebook_parameters
    from echovlsm.runs import project_root, resolve

    notebook, out = resolve(notebook), resolve(out)
    check_values(parameters, notebook_parameters(notebook), notebook.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".failed.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters=dict(parameters),
            cwd=str(project_root()),
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


def _without_uri_grammar() -> None:
    """Leave out an optional part of jsonschema: a grammar that takes seconds to build."""
    if "jsonschema" not in sys.modules and "rfc3987_syntax" not in sys.modules:
        sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # what Python takes for "not installed"
        import jsonschema  # noqa: F401

        del sys.modules["rfc3987_syntax"]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    status = warm.delegate(sys.argv[1:] if arguments is None else arguments)
    if status is not None:
        return status
    _without_uri_grammar()
    from echovlsm.parameters import ParameterError, parameters_for, read_profile

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "-f", "--profile", type=Path, help="parameter file, such as notebooks/profiles/demo.yaml"
    )
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--no-progress", action="store_true", help="no bar of cells")
    options = parser.parse_args(arguments)

    try:
        profile = read_profile(options.profile) if options.profile else {}
        # texts as they were typed: what they are, the notebook declares
        values = parameters_for(options.notebook, profile, dict(options.parameter))
        execute(options.notebook, options.out, values, progress=not options.no_progress)
    except ParameterError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Check a run before it starts: ``python -m echovlsm.dry_run camus-full --cohort /path/to/CAMUS_public``.

A large run should not stop after hours because a file is missing. Here everything that a run of notebooks 04
and 05 needs is looked at: the cohort, the synthetic cohorts, the weights, the prompts, the disk, and, by one
training step at batch 1 and one at batch 2, memory and time. Nothing is written, nothing is fetched.

The exit status is 0 if all is there, 1 if something is missing, 2 if the parameters make no sense.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm import cache, runs
from echovlsm import dry_run_checks as checks
from echovlsm.parameters import (
    ParameterError,
    check_values,
    coerce,
    notebook_defaults,
    notebook_parameters,
    read_profile,
)

COLUMNS: tuple[str, ...] = ("check", "value", "ok", "remedy")
NOTEBOOKS: tuple[str, ...] = ("04_training", "05_evaluation")
"""What a run consists of."""


def settings(profile: str | Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All parameters of a run: the notebooks' defaults, a profile's values, and changes on top.

    Parameters
    ----------
    profile
        A file of `notebooks/profiles`, or its name.
    changes
        Values that the profile has otherwise.

    Raises
    ------
    ParameterError
        No such profile, or a parameter that is unknown or has a value that it cannot have.
    """
    folder = runs.project_root() / "notebooks"
    named = Path(profile)
    file = runs.resolve(named) if named.suffix == ".yaml" else folder / "profiles" / f"{profile}.yaml"
    declared = {
        name: kind
        for path in sorted(folder.glob("*.ipynb"))
        for name, kind in notebook_parameters(path).items()
    }
    changed = coerce(changes or {}, declared)
    check_values(changed, declared, "parameters")
    values = {**read_profile(file), **changed}
    check_values(values, declared, file.name)
    defaults = [notebook_defaults(folder / f"{name}.ipynb") for name in reversed(NOTEBOOKS)]
    return {**defaults[0], **defaults[1], **values}


def dry_run(
    values: Mapping[str, Any], *, measure: bool = True, batches: tuple[int, int] = (1, 2)
) -> pd.DataFrame:
    """Look at everything that a run needs.

    Parameters
    ----------
    values
        Of `settings`.
    measure
        Whether to take training steps, for memory and time; with a model of full size a minute on a CPU.
    batches
        Two numbers of pictures at which a step is measured; what lies between and beyond is a straight line.

    Returns
    -------
    DataFrame
        One row a check: `check`, `value`, `ok` (bool), `remedy` (empty where nothing is to be done).
    """
    from echovlsm.run_costs import process_memory

    room = cache.bound()
    with _without_cache():
        found = checks.check_machine(values)
        more, frames = checks.check_cohort(values)
        found += more
        more, sources = checks.check_synthetic(values)
        found += more
        held = process_memory()
        more, model = checks.check_weights(values)
        found += more
        if model is not None:
            texts: list[str] = []
            if frames is not None or sources:
                more, texts = checks.check_prompts(values, frames, sources, model)
                found += more
            counts = checks.count_pictures(values, frames, sources)
            steps = batches if measure and texts else None
            found += checks.check_costs(values, model, texts, counts, room, held, steps)
    return pd.DataFrame(found, columns=list(COLUMNS)).astype({"ok": bool})


@contextmanager
def _without_cache() -> Iterator[None]:
    """Nothing is kept of what is computed here."""
    before = os.environ.get(cache.FOLDER)
    os.environ[cache.FOLDER] = ""
    try:
        yield
    finally:
        del os.environ[cache.FOLDER]
        if before is not None:
            os.environ[cache.FOLDER] = before


# -- command line -----------------------------------------------------------------------------------------


def report(table: pd.DataFrame, width: int = 0) -> str:
    """The checks as lines for a terminal, and a last line that sums them up."""
    width = width or shutil.get_terminal_size((110, 24)).columns
    name = max(map(len, table["check"])) + 2
    room = max(40, width - name - 9)
    lines = []
    for row in table.itertuples():
        words = [row.value, f"→ {row.remedy}"] if row.remedy else [row.value]
        texts = [
            part
            for text in words
            for part in textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
        ]
        head = f"{'ok' if row.ok else 'MISSING':9}{row.check:{name}}"
        for text in texts:
            lines.append(f"{head}{text}")
            head = " " * len(head)
    bad = int((~table["ok"]).sum())
    lines.append(f"{bad} of {len(table)} checks failed: a run would stop" if bad else "a run can start")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which run is meant."""
    parser.add_argument("profile", help="profile of notebooks/profiles, such as camus-full, or its file")
    parser.add_argument("--cohort", help="folder of the target cohort")
    parser.add_argument("--weights", help="folder or hub id of the weights")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))


def read_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters that the command line gives."""
    named = {"cohort": options.cohort, "weights": options.weights}
    return dict(options.parameter) | {name: value for name, value in named.items() if value}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--no-measure", action="store_true", help="take no training steps")
    parser.add_argument(
        "--batches", nargs=2, type=int, default=(1, 2), help="pictures of the measured steps (1 2)"
    )
    parser.add_argument("--csv", action="store_true", help="print the table as CSV")
    options = parser.parse_args(arguments)
    try:
        values = settings(options.profile, read_changes(options))
    except ParameterError as error:
        print(error, file=sys.stderr)
        return 2
    if not 0 < options.batches[0] < options.batches[1]:
        parser.error(f"--batches: {options.batches} must be two rising numbers")
    runs.set_up(values["threads"], values["seed"])
    table = dry_run(values, measure=not options.no_measure, batches=tuple(options.batches))
    print(table.to_csv(index=False), end="") if options.csv else print(report(table))
    return int(not table["ok"].all())


if __name__ == "__main__":
    sys.exit(main())

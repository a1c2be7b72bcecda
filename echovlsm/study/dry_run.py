"""Check a run before it starts: ``echovlsm dry-run camus-full --cohort /path/to/CAMUS_public``.

A large run should not stop after hours because a file is missing. Here everything that a run of notebooks 04
and 05 needs is looked at: the cohort, the synthetic cohorts, the weights, the prompts, the disk, and, by one
training step at batch 1 and one at batch 2, memory and time. Nothing is written, nothing is fetched.

The exit status is 0 if all is there, 1 if something is missing, 2 if the parameters make no sense.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm.base import cache, paths
from echovlsm.study import dry_run_checks as checks
from echovlsm.study import run_costs
from echovlsm.study.parameters import (
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
    folder = paths.project_root() / "notebooks"
    named = Path(profile)
    file = paths.resolve(named) if named.suffix == ".yaml" else folder / "profiles" / f"{profile}.yaml"
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

    room = cache.bound()
    with _without_cache():
        found = checks.check_machine(values)
        more, frames = checks.check_cohort(values)
        found += more
        more, sources = checks.check_synthetic(values)
        found += more
        held = run_costs.process_memory()
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

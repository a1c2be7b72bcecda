"""What was done to break the project and what came of it, as tables for the book.

`python -m tests.faults`, `python -m tests.mutation`, `make coverage` and `make check-latest` write the files
of `data/results/reliability`; a table of which there is no file says how to make it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from book.tools.freshness import BookError
from book.tools.tables import markdown
from echovlsm.base import files

FOLDER = "data/results/reliability"
STAGES: dict[str, str] = {
    "phantom": "writing a phantom cohort, with two workers",
    "sampling": "drawing a synthetic cohort with diffusion",
    "training": "training, as notebook 04 does",
    "scoring": "scoring and putting on record",
    "denoiser": "training the denoiser",
    "features": "keeping what frozen encoders compute",
    "grid": "the grid, with all processes below it",
}
"""Names in the tables to words, in the book's order."""
_REMEDY = "make it again, or take it away"


def faults(root: Path) -> str:
    """Kills by stage: at random moments and between two steps on files, and how many came out the same."""
    table = _read(root, "faults.csv", ("stage", "at", "found", "half_written", "equal", "workers_ended"))
    if table is None:
        return _absent("python -m tests.faults")
    rows = []
    for name, part in _by_stage(table):
        found = part["found"].str.replace(r"^grid \d+: ", "", regex=True).value_counts(sort=False)
        states = "; ".join(f"{files.plain(state)}: {count}" for state, count in found.sort_index().items())
        counts = (part["at"] == "moment").sum(), (part["at"] == "step").sum() or "–"
        rows.append((name, *counts, states, part["half_written"].notna().sum(), _equal(part)))
    names = ("killed in", "at a random moment", "between two steps on files", "states found")
    told = (
        f"{len(table)} kills: {table['equal'].sum()} came out the same when the same was asked for again; "
        f"{table['half_written'].notna().sum()} left something half-written under a final name; "
        f"{(~table['workers_ended']).sum()} left a process behind."
    )
    shown = markdown((*names, "half-written", "equal when done again"), rows)
    return "\n\n".join([told, shown, _when(root, "faults")])


def disks(root: Path) -> str:
    """Full disks by stage: whether there was one clear error, and whether all came out the same with room."""
    names = ("stage", "kibibytes", "needed_kibibytes", "error", "names_folder", "names_remedy")
    table = _read(root, "disk.csv", (*names, "half_written", "equal"))
    if table is None:
        return _absent("python -m tests.faults --only disks")
    rows = []
    for name, part in _by_stage(table):
        share = part["kibibytes"] / part["needed_kibibytes"]
        failed = part[part["error"].notna()]
        clear = (failed["names_folder"] & failed["names_remedy"]).sum()
        tried = f"{len(part)} ({share.min():.0%} to {share.max():.0%})"
        half = part["half_written"].notna().sum()
        told = f"{clear} of {len(failed)}"
        rows.append((name, tried, told, len(part) - len(failed), half, _equal(part)))
    names = ("on a full disk", "disks (share of the room needed)", "said which folder and what to do")
    shown = markdown((*names, "went on without", "half-written", "equal with room"), rows, 4)
    return f"{shown}\n\n{_when(root, 'disk')}"


def pairs(root: Path) -> str:
    """Two processes in one place, by stage: what became of each."""
    table = _read(root, "concurrency.csv", ("stage", "first", "second", "half_written", "equal"))
    if table is None:
        return _absent("python -m tests.faults --only pairs")
    rows = []
    for name, part in _by_stage(table):
        worked = (part[["first", "second"]] == "worked").sum(axis=1)
        said = (part[["first", "second"]] == "said so").sum(axis=1)
        both, one = (worked == 2).sum(), ((worked == 1) & (said == 1)).sum()
        half = part["half_written"].notna().sum()
        rows.append((name, len(part), both, one, len(part) - both - one, half, _equal(part)))
    names = ("two processes at once", "pairs", "both did it, one after the other")
    names += ("one did it, the other said so", "anything else", "half-written", "equal")
    return f"{markdown(names, rows, 6)}\n\n{_when(root, 'concurrency')}"


def mutations(root: Path) -> str:
    """Lines changed at random, and whether a test noticed."""
    table = _read(root, "mutations.csv", ("file", "line", "original", "mutated", "caught"))
    if table is None:
        return _absent("python -m tests.mutation")
    rows = []
    for row in table.itertuples():
        place, lines = f"{Path(row.file).name} {row.line}", (row.original, row.mutated)
        texts = _plain(place, *(str(line).strip() for line in lines))
        rows.append((*texts, "yes" if row.caught else "**no**"))
    told = f"{table['caught'].sum()} of {len(table)} changed lines were noticed by a test."
    return f"{told}\n\n{markdown(('line', 'was', 'became', 'noticed'), rows)}"


def reached(root: Path) -> str:
    """Share of the package's lines that the tests reach: of all, and of the modules where it is least."""
    table = _read(root, "coverage.csv", ("module", "lines", "reached"))
    if table is None:
        return _absent("make coverage")
    table = table[table["lines"] > 0]
    table = table.assign(share=table["reached"] / table["lines"]).sort_values("share", kind="stable")
    told = (
        f"{table['reached'].sum() / table['lines'].sum():.1%} of {table['lines'].sum()} lines in "
        f"{len(table)} modules. Where it is least:"
    )
    rows = [(files.plain(row.module), row.lines, f"{row.share:.0%}") for row in table.head(8).itertuples()]
    parts = [told, markdown(("module", "lines", "reached"), rows, 2)]
    if known := _yaml(root, "coverage.yaml"):
        date, commit, tests = (str(known.get(name)) for name in ("date", "commit", "tests"))
        parts.append(files.plain(f"Made: {date[:10]}, commit {commit}, tests: {tests}."))
    return "\n\n".join(parts)


def latest(root: Path) -> str:
    """The tests with the newest versions, and on other Pythons."""
    runs = _yaml(root, "latest.yaml")
    if not runs:
        return _absent("make check-latest")
    names = ("Python", "tests", "passed", "failed", "skipped", "date")
    rows, notes = [], []
    for name, run in runs.items():
        rows.append(_plain(name, *(run.get(key.lower()) for key in names)))
        notes += [f"- {files.plain(name)}: {files.plain(run['note'])}"] if run.get("note") else []
        notes += [
            f"- {files.plain(name)}: failed is {files.plain(test)}" for test in run.get("failures") or []
        ]
    parts = [markdown(("versions", *names), rows), "\n".join(notes)]
    other = _read(root, "latest.csv", ("package", "locked", "newest"))
    if other is not None and len(other):
        parts.append("What differed from `requirements.lock` in the newest versions:")
        rows = [_plain(row.package, row.locked, row.newest) for row in other.fillna("–").itertuples()]
        parts.append(markdown(("package", "locked", "newest"), rows))
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[Path], str]] = {
    table.__name__: table for table in (faults, disks, pairs, mutations, reached, latest)
}
"""By the name of their marks."""


def _read(root: Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame | None:
    file = root / FOLDER / name
    return files.read_table(file, BookError, _REMEDY, columns) if file.is_file() else None


def _yaml(root: Path, name: str) -> dict[str, Any]:
    file = root / FOLDER / name
    return files.read_yaml(file, BookError, _REMEDY) if file.is_file() else {}


def _absent(command: str) -> str:
    return f"Not on record here: `{command}` makes it."


def _by_stage(table: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """The parts of a table, each with its stage in words."""
    strange = sorted(set(table["stage"]) - set(STAGES))
    if strange:
        raise BookError(f"{FOLDER}: the stage {strange[0]!r} is not known; {_REMEDY}")
    parts = ((words, table[table["stage"] == name]) for name, words in STAGES.items())
    return [(words, part) for words, part in parts if len(part)]


def _equal(part: pd.DataFrame) -> str:
    return f"{part['equal'].sum()} of {len(part)}"


def _plain(*values: object) -> tuple[str, ...]:
    return tuple(map(files.plain, values))


def _when(root: Path, name: str) -> str:
    """When and how a table was made."""
    known = _yaml(root, "about.yaml").get(name, {})
    parts = {
        f"{str(part.get('date'))[:10]}, commit {part.get('commit')}, Python {part.get('python')}, "
        f"seed {part.get('seed')}, scale {part.get('scale')}"
        for part in known.values()
    }
    return f"Made: {'; '.join(map(files.plain, sorted(parts)))}." if parts else ""

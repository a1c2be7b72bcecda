"""What was done to break the project and what came of it, as tables for the book.

`python -m tests.faults`, `python -m tests.mutation`, `make coverage` and `make check-latest` write the files
of `data/results/reliability`; a table of which there is no file says how to make it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from book.tools.freshness import BookError, plain
from echovlsm.base import files

if TYPE_CHECKING:
    import pandas as pd

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
    rows = [
        "| killed in | at a random moment | between two steps on files | states found | half-written "
        "| equal when done again |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for name, part in _by_stage(table):
        found = part["found"].str.replace(r"^grid \d+: ", "", regex=True)
        counts = (part["at"] == "moment").sum(), (part["at"] == "step").sum()
        half = part["half_written"].notna().sum()
        rows.append(
            f"| {STAGES[name]} | {counts[0]} | {counts[1] or '–'} | {_states(found)} | {half} "
            f"| {part['equal'].sum()} of {len(part)} |"
        )
    left = (~table["workers_ended"]).sum()
    equal = table["equal"].sum()
    said = (
        f"{len(table)} kills: {equal} came out the same when the same was asked for again; "
        f"{table['half_written'].notna().sum()} left something half-written under a final name; "
        f"{left} left a process behind."
    )
    return "\n".join([said, "", *rows, "", _when(root, "faults")])


def disks(root: Path) -> str:
    """Full disks by stage: whether there was one clear error, and whether all came out the same with room."""
    names = ("stage", "kibibytes", "needed_kibibytes", "error", "names_folder", "names_remedy")
    table = _read(root, "disk.csv", (*names, "half_written", "equal"))
    if table is None:
        return _absent("python -m tests.faults --only disks")
    rows = [
        "| on a full disk | disks (share of the room needed) | said which folder and what to do "
        "| went on without | half-written | equal with room |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, part in _by_stage(table):
        share = part["kibibytes"] / part["needed_kibibytes"]
        failed = part[part["error"].notna()]
        clear = (failed["names_folder"] & failed["names_remedy"]).sum()
        rows.append(
            f"| {STAGES[name]} | {len(part)} ({share.min():.0%} to {share.max():.0%}) "
            f"| {clear} of {len(failed)} | {len(part) - len(failed)} | {part['half_written'].notna().sum()} "
            f"| {part['equal'].sum()} of {len(part)} |"
        )
    return "\n".join([*rows, "", _when(root, "disk")])


def pairs(root: Path) -> str:
    """Two processes in one place, by stage: what became of each."""
    table = _read(root, "concurrency.csv", ("stage", "first", "second", "half_written", "equal"))
    if table is None:
        return _absent("python -m tests.faults --only pairs")
    rows = [
        "| two processes at once | pairs | both did it, one after the other | one did it, the other said so "
        "| anything else | half-written | equal |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, part in _by_stage(table):
        worked = (part[["first", "second"]] == "worked").sum(axis=1)
        said = (part[["first", "second"]] == "said so").sum(axis=1)
        both, one = (worked == 2).sum(), ((worked == 1) & (said == 1)).sum()
        rows.append(
            f"| {STAGES[name]} | {len(part)} | {both} | {one} | {len(part) - both - one} "
            f"| {part['half_written'].notna().sum()} | {part['equal'].sum()} of {len(part)} |"
        )
    return "\n".join([*rows, "", _when(root, "concurrency")])


def mutations(root: Path) -> str:
    """Lines changed at random, and whether a test noticed."""
    table = _read(root, "mutations.csv", ("file", "line", "original", "mutated", "caught"))
    if table is None:
        return _absent("python -m tests.mutation")
    rows = ["| line | was | became | noticed |", "| --- | --- | --- | --- |"]
    for row in table.to_dict("records"):
        texts = (plain(str(row[key]).strip()) for key in ("original", "mutated"))
        place = f"{Path(row['file']).name} {row['line']}"
        rows.append(f"| {' | '.join([plain(place), *texts])} | {'yes' if row['caught'] else '**no**'} |")
    said = f"{table['caught'].sum()} of {len(table)} changed lines were noticed by a test."
    return "\n".join([said, "", *rows])


def reached(root: Path) -> str:
    """Share of the package's lines that the tests reach: of all, and of the modules where it is least."""
    table = _read(root, "coverage.csv", ("module", "lines", "reached"))
    if table is None:
        return _absent("make coverage")
    about = root / FOLDER / "coverage.yaml"
    known: dict[str, Any] = files.read_yaml(about, BookError, _REMEDY) if about.is_file() else {}
    table = table[table["lines"] > 0]
    table = table.assign(share=table["reached"] / table["lines"]).sort_values("share", kind="stable")
    told = (
        f"{table['reached'].sum() / table['lines'].sum():.1%} of {table['lines'].sum()} lines in "
        f"{len(table)} modules. Where it is least:"
    )
    rows = ["| module | lines | reached |", "| --- | ---: | ---: |"]
    for row in table.head(8).itertuples():
        rows.append(f"| {plain(row.module)} | {row.lines} | {row.share:.0%} |")
    made = f"Made: {str(known.get('date'))[:10]}, commit {known.get('commit')}, tests: {known.get('tests')}."
    return "\n".join([told, "", *rows, *(["", plain(made)] if known else [])])


def latest(root: Path) -> str:
    """The tests with the newest versions, and on other Pythons."""
    file = root / FOLDER / "latest.yaml"
    if not file.is_file():
        return _absent("make check-latest")
    runs = files.read_yaml(file, BookError, _REMEDY)
    rows = ["| versions | Python | tests | passed | failed | skipped | date |", "| --- " * 7 + "|"]
    notes = []
    for name, run in runs.items():
        cells = (name, run.get("python"), run.get("tests"), run.get("passed"), run.get("failed"))
        cells = (*cells, run.get("skipped"), run.get("date"))
        rows.append(f"| {' | '.join(plain(str(cell)) for cell in cells)} |")
        notes += [f"- {plain(name)}: {plain(str(run['note']))}"] if run.get("note") else []
        notes += [f"- {plain(name)}: failed is {plain(test)}" for test in run.get("failures") or []]
    other = _read(root, "latest.csv", ("package", "locked", "newest"))
    told = []
    if other is not None and len(other):
        told = ["", "What differed from `requirements.lock` in the newest versions:", ""]
        told += ["| package | locked | newest |", "| --- | --- | --- |"]
        for row in other.fillna("–").to_dict("records"):
            told.append(f"| {' | '.join(plain(str(row[key])) for key in ('package', 'locked', 'newest'))} |")
    return "\n".join([*rows, "", *notes, *told])


TABLES: dict[str, Callable[[Path], str]] = {
    "faults": faults,
    "disks": disks,
    "pairs": pairs,
    "mutations": mutations,
    "reached": reached,
    "latest": latest,
}
"""By the name of their marks."""


def _read(root: Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame | None:
    file = root / FOLDER / name
    return files.read_table(file, BookError, _REMEDY, columns) if file.is_file() else None


def _absent(command: str) -> str:
    return f"Not on record here: `{command}` makes it."


def _by_stage(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    strange = sorted(set(table["stage"]) - set(STAGES))
    if strange:
        raise BookError(f"{FOLDER}: the stage {strange[0]!r} is not known; {_REMEDY}")
    return [(name, table[table["stage"] == name]) for name in STAGES if (table["stage"] == name).any()]


def _states(found: pd.Series) -> str:
    counts = found.value_counts(sort=False).sort_index()
    return "; ".join(f"{plain(str(state))}: {count}" for state, count in counts.items())


def _when(root: Path, name: str) -> str:
    """When and how a table was made."""
    file = root / FOLDER / "about.yaml"
    known: dict[str, Any] = files.read_yaml(file, BookError, _REMEDY).get(name, {}) if file.is_file() else {}
    if not known:
        return ""
    parts = sorted(
        {
            f"{str(part.get('date'))[:10]}, commit {part.get('commit')}, Python {part.get('python')}, "
            f"seed {part.get('seed')}, scale {part.get('scale')}"
            for part in known.values()
        }
    )
    return f"Made: {'; '.join(plain(part) for part in parts)}."

"""The rooms of the package: which rests on which, and which chapter of the book shows it.

This is the only account of what depends on what. A change in a room makes its chapter stale, and the chapters
of the rooms that rest on it, and no other: Snakemake's inputs, the freshness of a page and the hash of the
code in a run's record all go by it.
"""

from __future__ import annotations

from pathlib import Path

RESTS_ON: dict[str, tuple[str, ...]] = {
    "base": (),
    "cohort": ("base",),
    "phantom": ("cohort",),
    "prompts": ("cohort",),
    "models": ("base",),
    "training": ("prompts", "models"),
    "synthesis": ("training", "phantom"),
    "evaluation": ("training",),
    "study": ("synthesis", "evaluation"),
    "published": ("study",),
    "explorer": ("evaluation", "phantom"),
}
"""Room to the rooms from whose faces it may import, with all that those rest on; upstream ones first."""

CHAPTERS: dict[str, tuple[str, ...]] = {
    "01_cohort": ("cohort", "phantom"),
    "02_synthesis": ("synthesis",),
    "03_prompts": ("prompts",),
    "04_training": ("training",),
    "05_evaluation": ("evaluation",),
    "06_results": ("study",),
    "07_published": ("published",),
    "12_released_code": ("published",),
    "08_explorer": ("explorer",),
    "09_real_hearts": ("study",),
    "10_benchmarks": ("study",),
    "11_phantom": ("phantom", "study"),
}
"""Notebook to the rooms that it shows."""


def below(*rooms: str) -> tuple[str, ...]:
    """Rooms and all that they rest on, upstream ones first."""
    found, ask = set(), list(rooms)
    while ask:
        room = ask.pop()
        found.add(room)
        ask += RESTS_ON[room]
    return tuple(room for room in RESTS_ON if room in found)


def modules(*rooms: str, package: Path | None = None) -> list[Path]:
    """The source files of these rooms and of all that they rest on; of `package`, by default this one."""
    package = package or Path(__file__).parents[1]
    return [
        *package.glob("__init__.py"),
        *(p for room in below(*rooms) for p in sorted((package / room).rglob("*.py"))),
    ]


def modules_of(notebook: str, package: Path | None = None) -> list[Path]:
    """The source files that a notebook of the study rests on; all of them for any other notebook."""
    return modules(*CHAPTERS.get(notebook, tuple(RESTS_ON)), package=package)

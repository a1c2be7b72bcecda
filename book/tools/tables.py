"""Tables that prose pages get when the book is staged, so that no number and no list is typed into them.

A page says where with a mark, `<!-- generated: NAME -->`, alone on a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from book.tools.freshness import RECORDED, UNKNOWN, BookError, PageFacts
from echovlsm.base import files, plain
from echovlsm.evaluation import scoring, statistics
from echovlsm.published import scores as published
from echovlsm.study import answers

if TYPE_CHECKING:
    import pandas as pd

AGE_BANDS: tuple[int, ...] = (0, 50, 65, 130)
"""Limits in years of the age groups."""
_MARK = re.compile(r"^<!-- generated: ([a-z]+) -->$", re.MULTILINE)
_ROLE = re.compile(r"\s*\{footcite[^}]*\}`[^`]*`")


def questions(notebooks: Mapping[str, Any], facts: Iterable[PageFacts]) -> str:
    """Each notebook page with its question and what it found, as a Markdown table.

    Parameters
    ----------
    notebooks
        Page to its notebook, executed where it was.
    facts
        One a page: cohort and scale stand beside the finding, so that a demo cannot pass for hearts.
    """
    known = {fact.page: fact for fact in facts}
    rows = ["| page | the question | what we found | on |", "| --- | --- | --- | --- |"]
    for page, notebook in notebooks.items():
        first = notebook.cells[0].source
        found = re.search(r"\*\*The question\.\*\*\s*(.+?)(?:\n\s*\n|$)", first, flags=re.DOTALL)
        question = " ".join(_ROLE.sub("", found.group(1)).split()) if found else "–"
        answer = finding(notebook)
        where = f"{known[page].cohort}, {known[page].scale} scale" if answer else ""
        rows.append(f"| {{doc}}`/{page}` | {question} | {answer or '–'} | {where or '–'} |")
    return "\n".join(rows)


def finding(notebook: Any) -> str:
    """The first point of an executed notebook's cell tagged ``finding``; empty where there is none."""
    for cell in notebook.cells:
        if "finding" in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                points = output.get("data", {}).get("text/markdown", "").strip().split("\n- ")
                if points[0]:
                    return " ".join(points[0].removeprefix("- ").split()).replace("|", "\\|")
    return ""


def found(root: Path, notebooks: Mapping[str, Any], facts: Iterable[PageFacts]) -> str:
    """What the book found, a sentence each with interval, cohort and link, as a box for its first page.

    Parameters
    ----------
    notebooks, facts
        As for `questions`: the grid's finding is told where its page was executed.
    """
    records = answers.Records(root / "data" / "results" / "camus" / "study")
    real, paper, grid = (f"({{doc}}`chapter {name[:2]} </notebooks/{name}>`)" for name in _TOLD)
    lines = [f"**{answers.headline(records)}** {real}"]
    if (scores := recorded_scores(root)) is not None:
        (row,) = statistics.summary(scores.assign(every=""), ("every",), resamples=2000).to_dict("records")
        lines.append(
            f"A small model that learned from real images alone outlines {row['patients']} "
            f"{_scored_on(scores.attrs['record'])} with a mean Dice of {row['mean']:.3f} (95 % interval over "
            f"patients {row['low']:.3f} to {row['high']:.3f}; one training). {real}"
        )
    folder = root / "data" / "published" / "results"
    if folder.is_dir():
        head = published.load_results(folder)[0]["headline"].groupby("test", sort=False).first()
        lines += [
            f"In the paper's own scores of 50 testing patients of CAMUS, {_TESTS[test]} changes the best "
            f"Dice by {row['difference']:+.2f} points (95 % interval over patients {row['low']:+.2f} to "
            f"{row['high']:+.2f}; one training each). {paper}"
            for test, row in head.iterrows()
        ]
    page = f"notebooks/{_TOLD[2]}"
    if page in notebooks and (told := finding(notebooks[page])):
        (fact,) = (fact for fact in facts if fact.page == page)
        lines.append(f"On {fact.cohort}, {fact.scale} scale, which says nothing about hearts: {told} {grid}")
    points = "\n".join(f"- {line}" for line in lines)
    return f":::{{admonition}} What was found\n:class: tip\n{points}\n:::"


_TESTS = {
    "synthetic vs real": "training on synthetic images in place of real ones",
    "PT-FT vs real": "pretraining on synthetic images before training on real ones",
}
_TOLD = ("09_real_hearts", "07_published", "06_results")


def scales(facts: Iterable[PageFacts]) -> str:
    """Which scale and cohort this copy of the book shows, page by page."""
    pages: dict[str, list[str]] = {}
    for fact in facts:
        where = f"at {fact.scale} scale" + (f" on {fact.cohort}" if fact.cohort != UNKNOWN else "")
        if fact.state == "not executed":
            where = "not executed"
        elif fact.cohort.startswith(RECORDED):
            where = "from results on record"
        pages.setdefault(where, []).append(f"{{doc}}`{Path(fact.page).name[:2]} </{fact.page}>`")
    told = "; ".join(" ".join([", ".join(links), where]) for where, links in pages.items())
    return f"In this copy: {told}."


def rehearsal(root: Path) -> str:
    """The recorded rehearsal of the full study and what the dry run said before it, as Markdown."""
    folder = root / "data" / "results" / "camus" / "full-exercise"
    if not folder.is_dir():
        return "No rehearsal is on record here."
    rows, checks = answers.rehearsals(folder)
    shown = rows.map(lambda value: f"{value:.4g}").rename_axis("model").reset_index()
    told = checks.rename_axis("check").reset_index()
    return "\n\n".join(
        [
            "*Random weights, two steps: this shows that the way is open, and is not a result.*",
            _markdown(shown),
            "*What the dry run said of the whole run on that machine.*",
            _markdown(told),
        ]
    )


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |" for row in rows)


def recorded_scores(root: Path) -> pd.DataFrame | None:
    """Scores of the recorded run on real images with the highest mean Dice; None where there is none.

    Only runs that learned from real images count, and of their scores not those before training. `attrs`
    hold the run's record.
    """

    best = None
    for file in sorted((root / "data" / "results").rglob("run.yaml")):
        remedy = "restore this result, or take its folder away"
        record, scores = files.read_yaml(file, BookError, remedy), file.with_name("scores.parquet")
        if record.get("kind") != "real" or not scores.is_file():
            continue
        table = scoring.three_structures(files.read_table(scores, BookError, remedy, ("strategy", "dice")))
        table = table[table["strategy"] != "zeroshot"]
        if len(table) and (best is None or table["dice"].mean() > best["dice"].mean()):
            best = table
            best.attrs = {"name": file.parent.name, "record": record}
    return best


def _scored_on(record: Mapping[str, Any]) -> str:
    """Of which patients the scores of a record are."""
    where = record.get("evaluation", {}).get("parameters", {}).get("evaluate_on", "?")
    words = {"val": "validation", "test": "testing", "train": "training"}
    cohort = {"camus": "CAMUS"}.get(record.get("cohort"), plain(record.get("cohort")))
    return f"{words.get(where, plain(where))} patients of {cohort}"


def groups(root: Path) -> str:
    """Dice of the best recorded run by sex, age, quality, view and phase, as Markdown."""
    import pandas as pd

    scores = recorded_scores(root)
    if scores is None:
        return "No run on real images is on record here, so there is nothing to report by group."
    record, name = scores.attrs["record"], scores.attrs["name"]
    ages = pd.to_numeric(scores["age"], errors="coerce")
    names = [f"{low} to {high - 1}" for low, high in pairwise(AGE_BANDS)]
    scores = scores.assign(**{"age group": pd.cut(ages, AGE_BANDS, right=False, labels=names).astype(object)})
    rows = ["| group | | patients | mean Dice | 95 % interval |", "| --- | --- | ---: | ---: | ---: |"]
    unknown = []
    for column in ("sex", "age group", "quality", "view", "phase"):
        known = scores[scores[column].notna()]
        if known.empty:
            unknown.append(column.removesuffix(" group"))
            continue
        for row in statistics.summary(known, (column,), resamples=2000).to_dict("records"):
            rows.append(
                f"| {column} | {plain(row[column])} | {row['patients']} | {row['mean']:.3f} "
                f"| {row['low']:.3f} to {row['high']:.3f} |"
            )
    told = (
        f"The recorded run `{name}` (scale {plain(record.get('scale'))}, {_scored_on(record)}); "
        "intervals over patients."
    )
    if unknown:
        told += (
            f" **These scores do not say {', '.join(unknown)}, "
            "so that no bias by them can be seen or excluded.**"
        )
    return "\n".join([told, "", *rows])


def fill(text: str, tables: dict[str, Callable[[], str]], page: str) -> str:
    """Replace every mark of a page by its table.

    Raises
    ------
    BookError
        A mark names a table that does not exist.
    """

    def table(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in tables:
            raise BookError(f"{page}: no table {name!r} to put there; there are: {', '.join(tables)}")
        return tables[name]()

    return _MARK.sub(table, text)

"""Tables that prose pages get when the book is staged, so that no number and no list is typed into them.

A page says where with a mark, `<!-- generated: NAME -->`, alone on a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from book.tools.freshness import BookError, PageFacts
from echovlsm.base import files, plain
from echovlsm.evaluation import scoring
from echovlsm.study import answer_text, answers

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


def headline(root: Path) -> str:
    """The answer to the book's question, from the records of the study on real hearts."""
    return f"**{answer_text.headline(answers.Records(root / 'data' / 'results' / 'camus' / 'study'))}**"


def recorded_scores(root: Path) -> pd.DataFrame | None:
    """Scores of the recorded run on real pictures with the highest mean Dice; None where there is none.

    Only runs that learned from real pictures count, and of their scores not those before training. `attrs`
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


def groups(root: Path) -> str:
    """Dice of the best recorded run by sex, age, quality, view and phase, as Markdown."""
    import pandas as pd

    from echovlsm.evaluation import statistics

    scores = recorded_scores(root)
    if scores is None:
        return "No run on real pictures is on record here, so there is nothing to report by group."
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
    where = record.get("evaluation", {}).get("parameters", {}).get("evaluate_on", "?")
    told = (
        f"The recorded run `{name}` (scale {plain(record.get('scale'))}, {plain(where)} patients of "
        f"{plain(record.get('cohort'))}); intervals over patients."
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

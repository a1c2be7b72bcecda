"""What prose pages get when the book is staged, so that no number and no list is typed into them.

A page says where with a mark, `<!-- generated: NAME -->`, alone on a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from book.tools.freshness import RECORDED, UNKNOWN, BookError, PageFacts
from echovlsm.base import figures, files
from echovlsm.evaluation import scoring, statistics
from echovlsm.published import scores as published
from echovlsm.study import answers

AGE_BANDS: tuple[int, ...] = (0, 50, 65, 130)
"""Limits in years of the age groups."""
STUDY = Path("data/results/camus/study")
"""Records of the study on real hearts, from the project's root."""
_MARK = re.compile(r"^<!-- generated: ([a-z]+) -->$", re.MULTILINE)
_ROLE = re.compile(r"\s*\{footcite[^}]*\}`[^`]*`")
_TESTS = {
    "synthetic vs real": "training on synthetic images in place of real ones",
    "PT-FT vs real": "pretraining on synthetic images before training on real ones",
}
_TOLD = ("09_real_hearts", "11_phantom", "07_published", "06_results")


def markdown(headings: Sequence[str], rows: Iterable[Iterable[object]], numbers: int = 0) -> str:
    """A Markdown table of cells that are Markdown; the last `numbers` columns are set to the right."""
    rules = ["---"] * (len(headings) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (headings, rules, *rows))


def fill(text: str, tables: Mapping[str, Callable[[], str]], page: str) -> str:
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


# -- the first page -----------------------------------------------------------------------------------------


def questions(notebooks: Mapping[str, Any], facts: Iterable[PageFacts]) -> str:
    """Each notebook page with its question, what it found, and on which cohort at which scale.

    Parameters
    ----------
    notebooks
        Page to its notebook, executed where it was.
    facts
        One per page.
    """
    known = {fact.page: fact for fact in facts}
    rows = []
    for page, notebook in notebooks.items():
        first = notebook.cells[0].source
        found = re.search(r"\*\*The question\.\*\*\s*(.+?)(?:\n\s*\n|$)", first, flags=re.DOTALL)
        question = " ".join(_ROLE.sub("", found.group(1)).split()) if found else "–"
        answer = finding(notebook)
        where = f"{known[page].cohort}, {known[page].scale} scale" if answer else ""
        rows.append((f"{{doc}}`/{page}`", question, answer or "–", where or "–"))
    return markdown(("page", "the question", "what we found", "on"), rows)


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

    `notebooks` and `facts` are those of `questions`; the phantom's and the grid's first findings are
    told where their pages were executed.
    """
    records = answers.Records(root / STUDY)
    real, phantom, paper, grid = (f"({{doc}}`chapter {name[:2]} </notebooks/{name}>`)" for name in _TOLD)
    lines = [f"**{answers.headline(records)}** {real}"]
    if (scores := recorded_scores(root)) is not None:
        (row,) = statistics.summary(scores.assign(every=""), ("every",), resamples=2000).to_dict("records")
        lines.append(
            f"A small model that learned from real images alone outlines {row['patients']} "
            f"{_scored_on(scores.attrs['record'])} with a mean Dice of {row['mean']:.3f} (95 % interval over "
            f"patients {row['low']:.3f} to {row['high']:.3f}; one training). {real}"
        )
    said = {page: finding(notebook) for page, notebook in notebooks.items()}
    if told := said.get(f"notebooks/{_TOLD[1]}"):
        lines.append(f"{told} {phantom}")
    folder = root / "data" / "published" / "results"
    if folder.is_dir():
        head = published.load_results(folder)[0]["headline"].groupby("test", sort=False).first()
        lines += [
            f"In the paper's own scores of 50 testing patients of CAMUS, {_TESTS[test]} changes the best "
            f"Dice by {row['difference']:+.2f} points (95 % interval over patients {row['low']:+.2f} to "
            f"{row['high']:+.2f}; one training each). {paper}"
            for test, row in head.iterrows()
        ]
    if told := said.get(page := f"notebooks/{_TOLD[3]}"):
        (fact,) = (fact for fact in facts if fact.page == page)
        lines.append(f"On {fact.cohort}, {fact.scale} scale, which says nothing about hearts: {told} {grid}")
    points = "\n".join(f"- {line}" for line in lines)
    return f":::{{admonition}} What was found\n:class: tip\n{points}\n:::"


def budget(root: Path, target: Path) -> str:
    """The annotation budget on real hearts as a figure, drawn to `target`; empty without records.

    The title says what was found, and of one seed that it is no finding.
    """
    records = answers.Records(root / STUDY)
    points = answers.budget_points(records)
    if points.empty:
        return ""
    figures.use_style()
    figure = answers.plot_budget(points, answers.budget_gains(records))
    record = next(iter(records.found.values()))
    figures.stamp(figure, record["scale"], record["cohort"], "real")
    with files.appearing(target) as partial:
        figure.savefig(partial, format="svg", bbox_inches="tight", metadata={"Date": None})
    told = (
        "Real hearts: mean Dice of the validation patients of CAMUS against the number of annotated training "
        "patients, after equally many steps in each arm. Bars: 95 % intervals over patients and seeds."
    )
    if single := int((points["seeds"] == 1).sum()):
        told += f" Hollow: one training, which is no finding ({single} of {len(points)} points)."
    count, planned = len(records.plan) - len(records.missing), len(records.plan)
    told += f" {count} of the study's {planned} runs are on record."
    told += f" See {{doc}}`chapter 09 </notebooks/{_TOLD[0]}>`."
    return f":::{{figure}} {target.name}\n:alt: {figures.describe(figure)}\n\n{told}\n:::"


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


# -- other pages --------------------------------------------------------------------------------------------


def status(root: Path, facts: Sequence[PageFacts]) -> str:
    """How each page came about, and the packages that the runs used."""
    rows = []
    for f in facts:
        state = f"{f.state}: {', '.join(f.changed)} changed" if f.changed else f.state
        cohort = f.cohort.replace("/", "/\u200b")  # so that a path may be broken
        cells = (f.executed, f.duration, f.scale, cohort, f.device, f.commit, state)
        if f.state == "not executed":
            cells = tuple("–" if cell == UNKNOWN else cell for cell in cells)
        rows.append((f"{{doc}}`{Path(f.page).name} </{f.page}>`", *cells))
    names = ("page", "executed", "took", "scale", "cohort", "device", "commit", "state")
    lock = (root / "requirements.lock").read_text().lower().splitlines()
    pins = dict(line.split("==") for line in lock if "==" in line)
    used: dict[str, set[str]] = {}
    for f in facts:
        for name, version in f.packages.items():
            used.setdefault(name, set()).add(str(version))
    packages = markdown(
        ("package", "used by the runs", "in requirements.lock"),
        ((name, ", ".join(sorted(used[name])), pins.get(name.lower(), "–")) for name in sorted(used)),
    )
    told = packages if used else "No run has recorded its packages."
    return f"{markdown(names, rows)}\n\n## Packages\n\n{told}"


def rehearsal(root: Path) -> str:
    """The recorded rehearsal of the full study and what the dry run said before it."""
    folder = root / "data" / "results" / "camus" / "full-exercise"
    if not folder.is_dir():
        return "No rehearsal is on record here."
    rows, checks = answers.rehearsals(folder)
    shown = rows.map(lambda value: f"{value:.4g}").rename_axis("model").reset_index()
    return "\n\n".join(
        [
            "*Random weights, two steps: this shows that everything runs, and is not a result.*",
            _of_frame(shown),
            "*What the dry run said of the whole run on that machine.*",
            _of_frame(checks.rename_axis("check").reset_index()),
        ]
    )


def _of_frame(table: pd.DataFrame) -> str:
    rows = table.astype(str).to_numpy().tolist()
    return markdown(list(table.columns), ([cell.replace("|", " ") for cell in row] for row in rows))


def recorded_scores(root: Path) -> pd.DataFrame | None:
    """Scores after training of the recorded run on real images with the highest mean Dice; None without any.

    `attrs` hold the run's `name` and `record`.
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
    cohort = {"camus": "CAMUS"}.get(record.get("cohort"), files.plain(record.get("cohort")))
    return f"{words.get(where, files.plain(where))} patients of {cohort}"


def groups(root: Path) -> str:
    """Dice of the best recorded run by sex, age, quality, view and phase."""
    scores = recorded_scores(root)
    if scores is None:
        return "No run on real images is on record here, so there is nothing to report by group."
    record, name = scores.attrs["record"], scores.attrs["name"]
    ages = pd.to_numeric(scores["age"], errors="coerce")
    names = [f"{low} to {high - 1}" for low, high in pairwise(AGE_BANDS)]
    scores = scores.assign(**{"age group": pd.cut(ages, AGE_BANDS, right=False, labels=names).astype(object)})
    rows, unknown = [], []
    for column in ("sex", "age group", "quality", "view", "phase"):
        known = scores[scores[column].notna()]
        if known.empty:
            unknown.append(column.removesuffix(" group"))
            continue
        for row in statistics.summary(known, (column,), resamples=2000).to_dict("records"):
            interval = f"{row['low']:.3f} to {row['high']:.3f}"
            rows.append((column, files.plain(row[column]), row["patients"], f"{row['mean']:.3f}", interval))
    told = (
        f"The recorded run `{name}` (scale {files.plain(record.get('scale'))}, {_scored_on(record)}); "
        "intervals over patients."
    )
    if unknown:
        told += (
            f" **These scores do not say {', '.join(unknown)}, "
            "so that no bias by them can be seen or excluded.**"
        )
    return f"{told}\n\n{markdown(('group', '', 'patients', 'mean Dice', '95 % interval'), rows, 3)}"

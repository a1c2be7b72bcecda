"""The book: stage the prose and the executed notebooks, say on each page how fresh it is, build, check.

Notebooks are committed without outputs. The book publishes the copies that Papermill executed, so a source
tree of its own is staged first, and Jupyter Book builds that. A page is dressed for a reader: what was found
comes first, bookkeeping is folded, a section tagged ``with-results`` that shows nothing is left out. Command
line::

    python -m book.tools record EXECUTED                      # right after Papermill
    python -m book.tools build --scale demo --executed notebooks/01_cohort=EXECUTED --executed ...
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from book.tools import reliability as book_reliability
from book.tools import tables as book_tables
from book.tools.freshness import RECORDED, UNKNOWN, BookError, PageFacts, page_facts, prose_line
from echovlsm.base import files, paths
from echovlsm.study import execution

__all__ = ["BookError", "PageFacts", "build", "notebook_pages", "stage", "toc_pages"]

_SCALE_NOTES = {
    "smoke": "**Smoke scale.** A test of the machinery that takes seconds. Its numbers mean nothing.",
    "demo": "**Demo scale.** A small run that shows how the study works. Its numbers are not findings.",
    "full": "**Full scale.**",
}
_RECORDED_NOTE = (
    "**On record.** Nothing was trained for this page. Each figure names scale and cohort of its numbers."
)
_LIVE = "*This opens in the notebook. A version that needs no notebook stands further down on this page.*"
_WIDGET = "application/vnd.jupyter.widget-view+json"
# The theme asks for icon fonts early, across origins: a browser refuses that for a book opened as a file.
_FONT_PRELOAD = re.compile(r'<link rel="preload" as="font"[^>]*>\s*')
# Thebe is not used (_config.yml); its settings stand on every page twice, which is a syntax error.
_THEBE = re.compile(
    r"<script>const THEBE_JS_URL.*?</script>\s*|<script[^>]*sphinx-thebe\.js[^>]*></script>\s*"
)
_ANSWER, _EXPECT = "## What we saw", "**What to expect.**"
# What opens or closes a run's record in a notebook.
_RECORD = re.compile(r"\b(?:page\.open|record\.(?:start|finish|discard))\(")
# A long path in a table's cell or in code may be broken after a slash, a dot or an underscore, not elsewhere.
_CELL = re.compile(r"(?<=>)[^<>]+(?=</t[dh]>)")
_LONG = re.compile(r"[\w./:=-]{18,}")
_CODE = re.compile(r'(?<=<span class="pre">)[^<>]{18,}(?=</span>)')
_EXPONENT = re.compile(r"(?<=\de)-(?=\d)")
_PART = re.compile(r"(?<=[/_.])(?=\w)")
_PROGRESS = re.compile(r"\d+%\|.*\||\d+(?:\.\d+)?\s?(?:it|[a-z]+) \[\d+:\d+|^\s*Executing: ")


# -- pages ----------------------------------------------------------------------------------------------


def toc_pages(root: Path) -> list[str]:
    """Every page of `_toc.yml` in reading order, as it is written there (no suffix)."""

    def walk(node: Any) -> Iterable[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield str(value)
                else:
                    yield from walk(value)
        elif isinstance(node, list):
            for item in node:
                yield from walk(item)

    return list(walk(yaml.safe_load((root / "_toc.yml").read_text())))


def notebook_pages(root: Path) -> list[str]:
    """The pages of `_toc.yml` that are notebooks.

    Raises
    ------
    BookError
        A page has neither a Markdown file nor a notebook.
    """
    pages = [page for page in toc_pages(root) if not (root / f"{page}.md").is_file()]
    absent = [page for page in pages if not (root / f"{page}.ipynb").is_file()]
    if absent:
        raise BookError(f"{root / '_toc.yml'} lists {', '.join(absent)}: there is no such .md or .ipynb file")
    return pages


# -- staging --------------------------------------------------------------------------------------------


def stage(
    scale: str,
    executed: Mapping[str, str | Path],
    out: str | Path,
    *,
    root: str | Path | None = None,
    allow_missing: bool = False,
) -> list[PageFacts]:
    """Lay out a source tree that Jupyter Book can build by itself.

    Parameters
    ----------
    scale
        The scale that the book shows, for pages that do not tell their own.
    executed
        Page of `_toc.yml` (such as `notebooks/01_cohort`) to its executed notebook.
    out
        The folder to make; it is replaced.
    root
        The project; by default the one of the working folder.
    allow_missing
        Publish a notebook that was not executed as it is, with a note, instead of refusing.

    Returns
    -------
    list of PageFacts
        One for each notebook page.

    Raises
    ------
    BookError
        A page has no executed notebook, its execution failed, or a name is no notebook page of the book.
    """
    import nbformat

    root = Path(root) if root else paths.project_root()
    out = Path(out)
    pages = notebook_pages(root)
    for page in executed:
        if page not in pages:
            near = difflib.get_close_matches(page, pages, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(pages)}"
            raise BookError(f"{page} is no notebook page of {root / '_toc.yml'}; {hint}")
    sources = {page: Path(executed[page]) if page in executed else None for page in pages}
    missing = [page for page, file in sources.items() if file is None or not file.is_file()]
    if missing and not allow_missing:
        listed = "; ".join(f"{page} ({sources[page] or 'no file named'})" for page in missing)
        raise BookError(
            f"not executed: {listed}. Execute with `snakemake --cores 2 book --config profile={scale}`, "
            "or publish as it is with --allow-missing"
        )
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(root / "book", out / "book", ignore=shutil.ignore_patterns(".*", "_generated", "tools"))
    shutil.copytree(root / "cluster", out / "cluster")
    for name in ("_toc.yml", "CITATION.cff"):
        shutil.copy(root / name, out / name)
    (out / "_config.yml").write_text(yaml.safe_dump(_settings(root), sort_keys=False, allow_unicode=True))

    execution.cohort_digest.cache_clear()
    facts, shown = [], {}
    for page in pages:
        source = sources[page]
        if page in missing or source is None:
            fact = PageFacts(page, scale=scale, state="not executed")
            notebook = nbformat.read(root / f"{page}.ipynb", as_version=4)
        else:
            fact = page_facts(root, page, source, scale)
            notebook = nbformat.read(source, as_version=4)
            if (static := source.with_name("static")).is_dir():  # what the notebook made for its page
                shutil.copytree(static, out / "book" / "_static", dirs_exist_ok=True)
        shown[page] = notebook
        _dress(notebook, fact)
        (out / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out / f"{page}.ipynb")
        facts.append(fact)
    tables = {
        "status": lambda: _status_tables(root, facts),
        "found": lambda: book_tables.found(root, shown, facts),
        "scales": lambda: book_tables.scales(facts),
        "rehearsal": lambda: book_tables.rehearsal(root),
        "questions": lambda: book_tables.questions(shown, facts),
        "groups": lambda: book_tables.groups(root),
        **{name: partial(table, root) for name, table in book_reliability.TABLES.items()},
    }
    for page in (page for page in toc_pages(root) if page not in pages):
        text = book_tables.fill((root / f"{page}.md").read_text(), tables, page)
        line = prose_line(root, root / f"{page}.md")
        (out / f"{page}.md").write_text(f"{text.rstrip()}\n\n{_box('freshness', line)}\n")
    return facts


def _settings(root: Path) -> dict[str, Any]:
    """`_config.yml`, with buttons that lead to a repository only where it names one."""
    settings = files.read_yaml(root / "_config.yml", BookError, "restore it")
    there = bool((settings.get("repository") or {}).get("url"))
    if not there:
        for name in ("repository", "launch_buttons"):
            settings.pop(name, None)
    settings.setdefault("html", {})["use_repository_button"] = there
    options = settings.setdefault("sphinx", {}).setdefault("config", {}).setdefault("html_theme_options", {})
    options["use_download_button"] = there
    return settings


def _box(classes: str, text: str) -> str:
    return f":::{{container}} {classes}\n{text}\n:::"


def _dress(notebook: Any, fact: PageFacts) -> None:
    """Make an executed notebook a page: scale below the title, bookkeeping folded, progress bars out."""
    from nbformat.v4 import new_markdown_cell, new_output

    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            if any(output.output_type == "error" for output in cell.outputs):
                raise BookError(f"{fact.page}: cell {number} ended with an error; execute the notebook again")
            cell.outputs = [output for output in map(_tidy, cell.outputs) if output]
            if "remove-output" in cell.metadata.get("tags", []):  # lives in a notebook only
                cell.metadata["tags"].remove("remove-output")
                cell.outputs = [new_output("display_data", {"text/markdown": _LIVE})]
            _set_alt(cell)
        cell.metadata.pop("papermill", None)
    if fact.state != "not executed":
        notebook.cells = _answer_first(_with_results(notebook.cells))
    notebook.cells = _folded(notebook.cells)
    notebook.metadata.pop("papermill", None)  # holds paths of the machine that executed
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if not any(_WIDGET in output.get("data", {}) for output in outputs):
        notebook.metadata.pop("widgets", None)  # the state of widgets that the page does not show

    told = _SCALE_NOTES.get(fact.scale, f"**Scale {fact.scale}.**")
    recorded = fact.cohort.startswith(RECORDED)
    note = _box(f"scale-note scale-{fact.scale}", _RECORDED_NOTE if recorded else told)
    if fact.state == "not executed":
        note = ":::{warning}\nThis notebook was not executed: it is shown without results.\n:::"
    elif fact.cohort != UNKNOWN and not recorded:
        note = note.replace("\n:::", f" Cohort: {fact.cohort}.\n:::")
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        raise BookError(f"{fact.page}: the first cell must be Markdown and begin with the title, `# ...`")
    title, _, rest = first.source.partition("\n")
    first.source = f"{title}\n\n{note}\n{rest}"
    notebook.cells.append(new_markdown_cell(_box("freshness", fact.line), id="freshness"))


def _with_results(cells: Iterable[Any]) -> list[Any]:
    """Cells without the sections tagged ``with-results`` whose code shows nothing, for want of data."""
    sections: list[list[Any]] = []
    for cell in cells:
        if cell.cell_type == "markdown" or not sections:
            sections.append([])
        sections[-1].append(cell)
    return [
        cell
        for section in sections
        if "with-results" not in section[0].metadata.get("tags", [])
        or any(other.get("outputs") for other in section)
        for cell in section
    ]


def _answer_first(cells: list[Any]) -> list[Any]:
    """Cells with what the section "What we saw" shows, and its words, directly below the question.

    A notebook computes the answer last, a page begins with it. Where nothing is shown all stays in place.
    """
    from nbformat.v4 import new_markdown_cell

    start = next((n for n, cell in enumerate(cells) if cell.source.strip() == _ANSWER), len(cells))
    section, rest = cells[start + 1 :], []
    for number, cell in enumerate(section):
        if cell.cell_type == "markdown":
            section, rest = section[:number], section[number:]
            break
    shown = [cell for cell in section if cell.outputs]
    if not shown:
        return cells
    for cell in shown:
        cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), "hide-input"})
    others = [cell for cell in section if not cell.outputs]
    words = []
    if rest:
        text, heading, after = re.split(
            r"(^(?:\(.+\)=\n)?#|\Z)", rest[0].source, maxsplit=1, flags=re.MULTILINE
        )
        if text.strip():
            words = [new_markdown_cell(text.strip(), id="answer-words")]
            rest[0].source = f"{heading}{after}"
    cells[0].source, _, expect = cells[0].source.partition(_EXPECT)
    if expect:
        words.append(new_markdown_cell(f"## What to expect\n\n{expect.strip()}", id="expect"))
    return [cells[0], cells[start], *shown, *words, *cells[1:start], *others, *rest]


def _folded(cells: Iterable[Any]) -> list[Any]:
    """Cells with bookkeeping collapsed; neighbours without an output become one.

    Bookkeeping is the parameters, imports, and what opens or closes the run's record: a reader of the page
    looks for the subject. In the notebook these cells stay open.
    """
    shown: list[Any] = []
    held: list[str] = []  # what the last cell of `shown` holds, if it is folded and has no output
    for cell in cells:
        words = _bookkeeping(cell)
        if words:
            bare = not cell.outputs
            if held and bare:
                shown[-1].source += f"\n\n{cell.source}"
                held += [word for word in words if word not in held]
            else:
                shown.append(cell)
                held = list(words)
            told = " and ".join(filter(None, [", ".join(held[:-1]), held[-1]]))
            folded = shown[-1]
            tags = [
                tag for tag in folded.metadata.get("tags", []) if not tag.startswith(("remove-", "hide-"))
            ]
            folded.metadata["tags"] = [*tags, "hide-input"]
            folded.metadata.setdefault("mystnb", {}).update(
                code_prompt_show=f"Show {told}", code_prompt_hide=f"Hide {told}"
            )
            held = held if bare else []
        else:
            shown.append(cell)
            held = []
    return shown


def _bookkeeping(cell: Any) -> list[str]:
    """What of bookkeeping a cell holds, in words; empty for a cell that is to be read."""
    if cell.cell_type != "code":
        return []
    if any(tag.endswith("parameters") for tag in cell.metadata.get("tags", [])):
        return ["parameters"]
    lines = [line for line in cell.source.splitlines() if line.strip()]
    found = {
        "imports": any(line.startswith(("import ", "from ")) for line in lines),
        "record-keeping": any(_RECORD.search(line) for line in lines)
        or bool(lines and all(line.startswith((" ", ")", "record.write")) for line in lines)),
    }
    return [words for words, there in found.items() if there]


def _set_alt(cell: Any) -> None:
    """Give a cell's images the text that `figures.describe` left with them."""
    texts = [
        values["alt"]
        for output in cell.outputs
        for values in list(output.get("metadata", {}).values())[:1]
        if isinstance(values, Mapping) and "alt" in values
    ]
    if texts:
        cell.metadata.setdefault("mystnb", {})["image"] = {"alt": " ".join(dict.fromkeys(texts))}


def _in_one_piece(cell: re.Match[str]) -> str:
    """A table's cell whose small numbers stay on one line (1e-05) and whose long paths may be broken."""
    text = _EXPONENT.sub("\u2011", cell[0]).replace("≤ ", "≤\u00a0")
    return _LONG.sub(lambda word: _PART.sub("<wbr>", word[0]), text)


def _tidy(output: Any) -> Any:
    """An output without progress bars and with the theme's tables; None where nothing is left."""
    if output.output_type == "stream":
        lines = [line for line in re.split(r"[\r\n]", output.text) if not _PROGRESS.search(line)]
        output.text = "\n".join(lines)
        return output if output.text.strip() else None
    data = output.get("data", {})
    if _WIDGET in data and _PROGRESS.search(data.get("text/plain", "")):
        return None
    if "text/html" in data:  # the theme styles tables of this class only; a pandas Styler does not set it
        data["text/html"] = data["text/html"].replace('<table id="T_', '<table class="dataframe" id="T_')
        data["text/html"] = _CELL.sub(_in_one_piece, data["text/html"])
    return output


def _status_tables(root: Path, facts: list[PageFacts]) -> str:
    """The status page's two tables, pages and packages, as Markdown."""
    rows = ["| page | executed | took | scale | cohort | device | commit | state |", "| --- " * 8 + "|"]
    for f in facts:
        state = f"{f.state}: {', '.join(f.changed)} changed" if f.changed else f.state
        link = f"{{doc}}`{Path(f.page).name} </{f.page}>`"
        cohort = f.cohort.replace("/", "/\u200b")  # so that a path may be broken
        cells = (link, f.executed, f.duration, f.scale, cohort, f.device, f.commit, state)
        if f.state == "not executed":
            cells = (link, *("–" if cell == UNKNOWN else cell for cell in cells[1:]))
        rows.append(f"| {' | '.join(cells)} |")
    lock = (root / "requirements.lock").read_text().lower().splitlines()
    pins = dict(line.split("==") for line in lock if "==" in line)
    names = sorted({name for f in facts for name in f.packages})
    packages = ["| package | used by the runs | in requirements.lock |", "| --- | --- | --- |"]
    for name in names:
        used = ", ".join(sorted({str(f.packages[name]) for f in facts if name in f.packages}))
        packages.append(f"| {name} | {used} | {pins.get(name.lower(), '–')} |")
    table = "\n".join(packages) if names else "No run has recorded its packages."
    return "\n".join(rows) + "\n\n## Packages\n\n" + table


# -- building -------------------------------------------------------------------------------------------


def build(
    scale: str,
    executed: Mapping[str, str | Path],
    out: str | Path,
    *,
    root: str | Path | None = None,
    allow_missing: bool = False,
) -> Path:
    """Stage the book, build it with every warning as an error, and check that every page is there.

    Parameters are those of `stage`; `out` gets `source/`, `build.log` and, only if all went well,
    `_build/html/`.

    Returns
    -------
    Path
        `_build/html/index.html` in `out`.

    Raises
    ------
    BookError
        As `stage`; or Jupyter Book warned or failed; or a page is absent in what it built.
    """
    root = Path(root) if root else paths.project_root()
    out = Path(out).resolve()
    source, work, html = out / "source", out / "partial", out / "_build" / "html"
    stage(scale, executed, source, root=root, allow_missing=allow_missing)
    for old in (work, html):
        shutil.rmtree(old, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(source)]
    command += ["--path-output", str(work), "-n", "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log, said = out / "build.log", done.stdout + done.stderr
    log.write_text(said)
    if done.returncode:
        found = [line for line in said.splitlines() if re.search("WARNING|ERROR|Error", line)]
        raise BookError("\n  ".join([f"Jupyter Book failed; all it said is in {log}", *found[:20]]))
    built = work / "_build" / "html"
    absent = [page for page in ["index", *toc_pages(root)] if not (built / f"{page}.html").is_file()]
    if absent:
        raise BookError(f"Jupyter Book ended well, but made no page of {', '.join(absent)}; see {log}")
    _quiet(built)
    html.parent.mkdir(exist_ok=True)
    os.replace(built, html)
    shutil.rmtree(work)
    return html / "index.html"


def _quiet(built: Path) -> None:
    """Leave out of the built pages what a browser would complain of when they are opened as files.

    Long names in code get places where they may be broken.
    """
    icons = built / "_static" / "vendor" / "widgets"
    for page in built.rglob("*.html"):
        text = page.read_text()
        for unwanted in (_FONT_PRELOAD, _THEBE):
            text = unwanted.sub("", text)
        text = _CODE.sub(lambda name: _PART.sub("<wbr>", name[0]), text)
        page.write_text(text)
        if "vendor/embed-amd.js" in text:  # it looks for its icons beside the page
            beside = page.parent / "@jupyter-widgets" / "html-manager" / "dist"
            shutil.copytree(icons, beside, dirs_exist_ok=True)


# -- command line ---------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, help="Stage and build the book from executed notebooks.")


@app.command("build")
def build_command(
    executed: Annotated[list[str], typer.Option(help="PAGE=NOTEBOOK, the executed notebook of a page")],
    scale: Annotated[str, typer.Option(help="scale of pages that do not tell their own")] = "demo",
    out: Annotated[Path, typer.Option(help="where the book goes")] = Path("_build/book"),
    allow_missing: Annotated[bool, typer.Option(help="publish notebooks that were not executed")] = False,
) -> None:
    """Build the book and print the path of its first page."""
    pairs = dict(item.partition("=")[::2] for item in executed)
    try:
        for page, path in pairs.items():
            if not path:
                raise BookError(f"--executed {page}: must be PAGE=NOTEBOOK")
        typer.echo(build(scale, pairs, out, allow_missing=allow_missing))
    except BookError as error:
        typer.echo(f"book: {error}", err=True)
        raise typer.Exit(1) from None


@app.command("record")
def record_command(
    executed: Annotated[Path, typer.Argument(help="the notebook that Papermill wrote")],
    notebook: Annotated[Path | None, typer.Option(help="its source, if not that name in notebooks/")] = None,
    device: Annotated[str | None, typer.Option(help="the device, where it is not this machine's")] = None,
) -> None:
    """Write down what an execution depended on, beside the executed notebook."""
    try:
        typer.echo(execution.record_freshness(executed, notebook, device=device))
    except BookError as error:
        typer.echo(f"book: {error}", err=True)
        raise typer.Exit(1) from None

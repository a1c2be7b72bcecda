"""The book: stage the prose and the executed notebooks, build, check that every page is there.

Notebooks are committed without outputs. The book publishes the copies that Papermill executed, so a source
tree of its own is staged first, and Jupyter Book builds that. Command line::

    python -m book.tools build --scale demo --executed notebooks/01_cohort=EXECUTED --executed ...
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import nbformat
import typer
import yaml

from book.tools import pages, reliability, tables
from book.tools.freshness import BookError, PageFacts, page_facts, prose_line
from echovlsm.base import files, paths
from echovlsm.study import execution

# The theme asks for icon fonts early, across origins: a browser refuses that for a book opened as a file.
_FONT_PRELOAD = re.compile(r'<link rel="preload" as="font"[^>]*>\s*')
# Thebe is not used (_config.yml); its settings stand on every page twice, which is a syntax error.
_THEBE = re.compile(
    r"<script>const THEBE_JS_URL.*?</script>\s*|<script[^>]*sphinx-thebe\.js[^>]*></script>\s*"
)
_CODE = re.compile(r'(?<=<span class="pre">)[^<>]{18,}(?=</span>)')


# -- pages ----------------------------------------------------------------------------------------------


def toc_pages(root: Path) -> list[str]:
    """Every page of `_toc.yml` in reading order, as it is written there (no suffix)."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    return [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]


def notebook_pages(root: Path) -> list[str]:
    """The pages of `_toc.yml` that are notebooks; BookError where one has neither notebook nor Markdown."""
    found = [page for page in toc_pages(root) if not (root / f"{page}.md").is_file()]
    absent = [page for page in found if not (root / f"{page}.ipynb").is_file()]
    if absent:
        raise BookError(f"{root / '_toc.yml'} lists {', '.join(absent)}: there is no such .md or .ipynb file")
    return found


# -- staging --------------------------------------------------------------------------------------------


def stage(
    scale: str,
    executed: Mapping[str, str | Path],
    out: str | Path,
    *,
    root: str | Path | None = None,
    allow_missing: bool = False,
) -> list[PageFacts]:
    """Lay out in `out`, which is replaced, a source tree that Jupyter Book can build; facts of its notebooks.

    Parameters
    ----------
    scale
        For pages that do not tell their own.
    executed
        Page of `_toc.yml` (such as `notebooks/01_cohort`) to its executed notebook.
    root
        The project; by default the one of the working folder.
    allow_missing
        Publish a notebook that was not executed as it is, with a note, instead of refusing.

    Raises
    ------
    BookError
        A page has no executed notebook, its execution failed, or a name is no notebook page of the book.
    """
    root = Path(root) if root else paths.project_root()
    out = Path(out)
    notebooks = notebook_pages(root)
    for page in executed:
        if page not in notebooks:
            near = difflib.get_close_matches(page, notebooks, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(notebooks)}"
            raise BookError(f"{page} is no notebook page of {root / '_toc.yml'}; {hint}")
    sources = {page: Path(executed[page]) for page in notebooks if page in executed}
    missing = [page for page in notebooks if page not in sources or not sources[page].is_file()]
    if missing and not allow_missing:
        listed = "; ".join(f"{page} ({sources.get(page, 'no file named')})" for page in missing)
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
    for page in notebooks:
        if page in missing:
            fact = PageFacts(page, scale=scale, state="not executed")
            notebook = nbformat.read(root / f"{page}.ipynb", as_version=4)
        else:
            source = sources[page]
            fact = page_facts(root, page, source, scale)
            notebook = nbformat.read(source, as_version=4)
            if (static := source.with_name("static")).is_dir():  # what the notebook made for its page
                shutil.copytree(static, out / "book" / "_static", dirs_exist_ok=True)
        shown[page] = notebook
        pages.dress(notebook, fact)
        (out / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out / f"{page}.ipynb")
        facts.append(fact)
    made = {
        "status": lambda: tables.status(root, facts),
        "found": lambda: tables.found(root, shown, facts),
        "budget": lambda: tables.budget(root, out / "book" / "budget.svg"),
        "scales": lambda: tables.scales(facts),
        "rehearsal": lambda: tables.rehearsal(root),
        "questions": lambda: tables.questions(shown, facts),
        "groups": lambda: tables.groups(root),
        **{name: partial(table, root) for name, table in reliability.TABLES.items()},
    }
    for page in (page for page in toc_pages(root) if page not in notebooks):
        text = tables.fill((root / f"{page}.md").read_text(), made, page)
        line = prose_line(root, root / f"{page}.md")
        (out / f"{page}.md").write_text(f"{text.rstrip()}\n\n{pages.box('freshness', line)}\n")
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
    `_build/html/`, whose `index.html` is returned.

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
    """Take out of the pages what browsers complain of when they are opened as files; let long code break."""
    icons = built / "_static" / "vendor" / "widgets"
    for page in built.rglob("*.html"):
        text = page.read_text()
        for unwanted in (_FONT_PRELOAD, _THEBE):
            text = unwanted.sub("", text)
        text = _CODE.sub(lambda name: pages.breakable(name[0]), text)
        page.write_text(text)
        if "vendor/embed-amd.js" in text:  # it looks for its icons beside the page
            beside = page.parent / "@jupyter-widgets" / "html-manager" / "dist"
            shutil.copytree(icons, beside, dirs_exist_ok=True)


# -- command line ---------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False)


@app.callback()
def _book() -> None:
    """Stage and build the book from executed notebooks."""


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

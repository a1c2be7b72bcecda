"""The book: staged from executed notebooks, built without a warning, read offline, honest about its age."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book.tools import build as book
from book.tools.freshness import UNKNOWN, page_facts, prose_line
from echovlsm.study import execution

ROOT = Path(__file__).parents[2]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SLIDER = {
    "model_name": "IntSliderModel",
    "model_module": "@jupyter-widgets/controls",
    "model_module_version": "2.0.0",
    "state": {"value": 3},
}


def source_notebook(title: str) -> nbformat.NotebookNode:
    notebook = new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.cells = [
        new_markdown_cell(
            f"# {title}\n\nThe loss is $1 - D$, cited {{footcite:p}}`leclerc2019camus`.", id="a"
        ),
        new_code_cell('scale: str = "demo"\nprompt: str = "P1"', metadata={"tags": ["parameters"]}, id="b"),
        new_code_cell("1 + 1", id="c"),
        new_markdown_cell("## References\n\n```{footbibliography}\n```", id="d"),
    ]
    return notebook


def executed_notebook(title: str) -> nbformat.NotebookNode:
    """What Papermill makes of it: an injected cell, outputs, a record, progress bars."""
    notebook = source_notebook(title)
    injected = new_code_cell(
        "# Parameters\nprompt = 'P3'", metadata={"tags": ["injected-parameters"]}, id="i"
    )
    notebook.cells.insert(2, injected)
    widget = {"version_major": 2, "version_minor": 0, "model_id": "slider"}
    notebook.cells[3].outputs = [
        new_output(
            "stream", name="stderr", text="  0%|      | 0/3\r100%|######| 3/3 [00:00<00:00, 9.1it/s]\n"
        ),
        new_output("stream", name="stdout", text="kept line\n"),
        new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"}),
        new_output("display_data", {"text/html": '<table id="T_1"><tr><td>0.9</td></tr></table>'}),
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": widget, "text/plain": "S()"}),
    ]
    notebook.metadata["widgets"] = {
        "application/vnd.jupyter.widget-state+json": {
            "state": {"slider": SLIDER},
            "version_major": 2,
            "version_minor": 0,
        }
    }
    notebook.metadata["papermill"] = {
        "end_time": "2026-01-02T03:04:05+00:00",
        "duration": 12.3,
        "parameters": {"prompt": "P3"},
        "output_path": "/home/somebody/secret.ipynb",
    }
    return notebook


def project_files(root: Path) -> Path:
    """A project with the real prose, settings and profiles, and small notebooks in place of the real ones."""
    root.mkdir()
    for name in ("_config.yml", "_toc.yml", "requirements.lock", "CITATION.cff"):
        shutil.copy(ROOT / name, root / name)
    for name in ("book", "cluster"):
        shutil.copytree(ROOT / name, root / name)
    (root / "echovlsm" / "cohort").mkdir(parents=True)
    (root / "echovlsm" / "cohort" / "code.py").write_text("ANSWER = 42\n")
    (root / "notebooks" / "profiles").mkdir(parents=True)
    (root / "notebooks" / "profiles" / "demo.yaml").write_text("scale: demo\nprompt: P3\n")
    for page in book.toc_pages(ROOT):
        if not (ROOT / f"{page}.md").is_file():
            nbformat.write(source_notebook(f"About {Path(page).name}"), root / f"{page}.ipynb")
    return root


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """`project_files` of one test."""
    return project_files(tmp_path / "project")


@pytest.fixture
def executed(project: Path) -> dict[str, Path]:
    """Executed notebooks with their freshness records."""
    pairs = {}
    for page in book.notebook_pages(project):
        name = Path(page).name
        pairs[page] = project / "runs" / "demo" / name / f"{name}.ipynb"
        pairs[page].parent.mkdir(parents=True)
        nbformat.write(executed_notebook(f"About {name}"), pairs[page])
        run = {"device": "CPU, 2 threads", "packages": {"torch": "9.9.9"}, "scale": "demo"}
        (pairs[page].parent / "run.yaml").write_text(yaml.safe_dump(run))
        execution.record_freshness(pairs[page], root=project)
    return pairs


class _Page(HTMLParser):
    """What a page loads by itself, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words = ""
        self._silent = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._silent = tag in ("script", "style")
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.loads += [values.get("src") or "", values.get("srcset") or ""]
        if tag == "object":
            self.loads.append(values.get("data") or "")
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev", "search", "index"):
            self.loads.append(values.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words += data


def test_book_builds_every_page_and_asks_no_other_host(project: Path, executed: dict[str, Path]) -> None:
    made = executed["notebooks/08_explorer"].with_name("static") / "explorer" / "model.js"
    made.parent.mkdir(parents=True)
    made.write_text("// what a notebook made for its page\n")
    index = book.build("demo", executed, project / "_build", root=project)

    assert index == project / "_build" / "_build" / "html" / "index.html"
    html = index.parent
    titles = {page: _Page((html / f"{page}.html").read_text()) for page in book.toc_pages(project)}
    for page, found in titles.items():
        prose = project / f"{page}.md"
        first = prose.read_text().split("\n", 1)[0] if prose.is_file() else f"# About {Path(page).name}"
        text = (html / f"{page}.html").read_text()
        assert re.search(rf"<h1>{re.escape(first[2:])}", text), page
        assert text.count('<div class="freshness docutils container">') == 1, page
        expected = (
            "Executed 2026-01-02 03:04 UTC in 12 s"
            if page in executed
            else r"Last changed \d{4}-|Changed since |Not committed · file "
        )
        assert re.search(expected, found.words), page
    for page in executed:
        words = titles[page].words
        assert "CPU, 2 threads" in words
        assert "fresh" in words
        assert "Demo scale" in words
        assert "kept line" in words
        assert "Leclerc" in words, "the footnote of a citation"
        assert "9.1it/s" not in words, "Papermill's progress bars stay out"
        assert "prompt = 'P3'" in words or 'prompt = "P3"' in words, "injected parameters stay in"
        text = (html / f"{page}.html").read_text()
        assert '<table class="dataframe" id="T_1">' in text, "a pandas Styler's table looks like the others"
        assert "vendor/embed-amd.js" in text
        assert "vendor/mathjax/tex-mml-chtml.js" in text
    assert "9.9.9" in titles["book/status"].words
    assert "somebody" not in "".join(path.read_text() for path in html.rglob("*.ipynb"))

    pages = list(html.rglob("*.html"))
    assert len(pages) > len(titles)
    for path in pages:
        for address in _Page(path.read_text()).loads:
            assert not re.match(r"(https?:)?//", address), f"{path.name} loads {address}"
    for path in html.rglob("*.css"):
        assert not re.search(r"(@import|url\()[^;)]*https?://", path.read_text()), f"{path} loads from a host"
    assert (html / "_static" / "explorer" / "model.js").read_text() == made.read_text()
    vendor = html / "_static" / "vendor"
    scripts = ("require.js", "embed-amd.js", "tokenizers.js", "mathjax/tex-mml-chtml.js")
    for name in (*scripts, "mathjax/LICENSE"):
        assert (vendor / name).stat().st_size > 500, name
    assert list((vendor / "mathjax").rglob("*.woff"))


def test_bookkeeping_is_folded_and_what_is_to_be_read_is_not(
    project: Path, executed: dict[str, Path], tmp_path: Path
) -> None:
    page, path = next(iter(executed.items()))
    notebook = nbformat.read(path, as_version=4)
    printed = new_output("stream", name="stdout", text="5 images")
    cells = [
        "import numpy",
        "x = 1\npage.open(x)",
        "y = 2",
        "page.open(y)\nprint(y)",
        "record.write_table(y)",
    ]
    notebook.cells[3:3] = [new_code_cell(source, id=f"new{n}") for n, source in enumerate(cells)]
    notebook.cells[6].outputs = [printed]
    nbformat.write(notebook, path)
    book.stage("demo", executed, tmp_path / "out", root=project)
    staged = nbformat.read(tmp_path / "out" / f"{page}.ipynb", as_version=4)
    code = [cell for cell in staged.cells if cell.cell_type == "code"]
    folded = {
        cell.source: cell.metadata["mystnb"]["code_prompt_show"]
        for cell in code
        if "hide-input" in cell.metadata.get("tags", [])
    }
    first, printing, last = folded
    assert [part in first for part in ("prompt: str", "prompt = 'P3'", "numpy", "page.open(x)")] == [True] * 4
    assert folded[first] == "Show parameters, imports and record-keeping"
    assert printing == cells[3], "a cell with an output stays by itself"
    assert last == cells[4]
    assert folded[last] == "Show record-keeping"
    assert [cell.source for cell in code if cell.source not in folded] == ["y = 2", "1 + 1"]


def test_a_section_without_results_is_left_out_where_it_says_so(
    project: Path, executed: dict[str, Path], tmp_path: Path
) -> None:
    page, path = next(iter(executed.items()))
    notebook = nbformat.read(path, as_version=4)
    shown = new_output("stream", name="stdout", text="0.9")
    for name, outputs in (("Ours", []), ("Theirs", [shown])):
        title = new_markdown_cell(f"## {name}", metadata={"tags": ["with-results"]}, id=name)
        code = new_code_cell(f"{name.lower()}()", outputs=outputs, id=f"{name}-code")
        notebook.cells[-1:-1] = [title, code]
    nbformat.write(notebook, path)
    book.stage("demo", executed, tmp_path / "out", root=project)
    staged = nbformat.read(tmp_path / "out" / f"{page}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in staged.cells)
    assert "## Theirs" in text
    assert "theirs()" in text
    assert "## Ours" not in text
    assert "ours()" not in text
    assert "## References" in text


def test_a_page_begins_with_its_answer_and_ends_with_exercises(
    project: Path, executed: dict[str, Path], tmp_path: Path
) -> None:
    page, path = next(iter(executed.items()))
    notebook = nbformat.read(path, as_version=4)
    found = new_output("execute_result", {"text/markdown": "- Dice 0.9.", "text/plain": "M"})
    notebook.cells[0].source += "\n\n**What to expect.** Seconds."
    notebook.cells[-1:-1] = [
        new_markdown_cell("## What we saw", id="saw"),
        new_code_cell("best = 1", id="best"),
        new_code_cell("Markdown(best)", outputs=[found], metadata={"tags": ["finding"]}, id="found"),
        new_markdown_cell("How to read it.\n\n## Try it yourself\n\nTry.", id="try"),
    ]
    nbformat.write(notebook, path)
    book.stage("demo", executed, tmp_path / "out", root=project)
    cells = nbformat.read(tmp_path / "out" / f"{page}.ipynb", as_version=4).cells
    sources = [cell.source for cell in cells]
    assert sources[0].rstrip().endswith("{footcite:p}`leclerc2019camus`.")
    assert sources[1:4] == ["## What we saw", "Markdown(best)", "How to read it."]
    assert sources[4] == "## What to expect\n\nSeconds."
    assert {"finding", "hide-input"} <= set(cells[2].metadata["tags"])
    assert "Dice 0.9" in str(cells[2].outputs)
    assert sources.index("## Try it yourself\n\nTry.") == sources.index("best = 1") + 1
    assert [sum(text.count(words) for text in sources) for words in ("What we saw", "How to read")] == [1, 1]


def test_what_lives_in_a_notebook_only_says_so_on_the_page(
    project: Path, executed: dict[str, Path], tmp_path: Path
) -> None:
    page, path = next(iter(executed.items()))
    notebook = nbformat.read(path, as_version=4)
    widget = new_output("display_data", {"text/plain": "Explorer()"})
    live = new_code_cell("widget", outputs=[widget], metadata={"tags": ["remove-output"]}, id="live")
    notebook.cells.insert(4, live)
    nbformat.write(notebook, path)
    book.stage("demo", executed, tmp_path / "out", root=project)
    cells = nbformat.read(tmp_path / "out" / f"{page}.ipynb", as_version=4).cells
    (cell,) = (cell for cell in cells if cell.source == "widget")
    assert "remove-output" not in cell.metadata.get("tags", [])
    assert "opens in the notebook" in str(cell.outputs)
    assert "Explorer()" not in str(cell.outputs)


def _links(page: Path) -> list[str]:
    """Where the buttons in a page's header lead."""
    header = page.read_text().split('<div class="article-header-buttons">')[1].split("</article>")[0]
    return re.findall(r'<a href="([^"]+)"[^>]*\bbtn\b', header.split("<h1>")[0])


def test_buttons_lead_to_the_repository_that_is_named_and_else_there_are_none(
    project: Path, executed: dict[str, Path]
) -> None:
    html = book.build("demo", executed, project / "plain", root=project).parent
    assert _links(html / "notebooks" / "01_cohort.html") == []
    url = "https://github.com/somebody/hearts"
    settings = (project / "_config.yml").read_text()
    (project / "_config.yml").write_text(f"{settings}\nrepository:\n  url: {url}\n  branch: main\n")
    html = book.build("demo", executed, project / "named", root=project).parent
    links = _links(html / "notebooks" / "01_cohort.html")
    assert url in links
    assert any("mybinder.org" in link and "somebody/hearts/main" in link for link in links)
    inner = [link for link in links if not link.startswith("http")]
    assert inner
    for link in inner:
        assert (html / "notebooks" / link.split("#")[0]).resolve().exists(), link


def test_page_is_fresh_until_something_it_depends_on_changes(
    project: Path, executed: dict[str, Path]
) -> None:
    page, path = next(iter(executed.items()))

    def state() -> tuple[str, tuple[str, ...]]:
        found = page_facts(project, page, path, "demo")
        return found.state, found.changed

    assert state() == ("fresh", ())
    (project / "echovlsm" / "explorer").mkdir()
    (project / "echovlsm" / "explorer" / "code.py").write_text("# another chapter's\n")
    assert state() == ("fresh", ())
    (project / "echovlsm" / "cohort" / "code.py").write_text("ANSWER = 43\n")
    assert state() == ("stale", ("package",))
    (project / "echovlsm" / "cohort" / "code.py").write_text("ANSWER = 42\n")
    (project / "requirements.lock").write_text("torch==0.0.1\n")
    (project / "notebooks" / "profiles" / "demo.yaml").write_text("scale: demo\nprompt: P4\n")
    assert state() == ("stale", ("parameters", "lock"))
    nbformat.write(source_notebook("Another title"), project / f"{page}.ipynb")
    assert state()[1] == ("notebook", "parameters", "lock")


def test_prose_page_names_its_last_commit(project: Path) -> None:
    def git(*words: str) -> None:
        names = ["-c", "user.name=EchoVLSM", "-c", "user.email=nobody@example.org"]
        subprocess.run(["git", *names, *words], cwd=project, check=True, capture_output=True)

    page = project / "book" / "data.md"
    git("init", "-q")
    git("add", "book/data.md")
    git("commit", "-q", "-m", "Data", "--date", "2025-02-03T04:05:06Z")
    assert re.fullmatch(r"Last changed \d{4}-\d\d-\d\d · commit [0-9a-f]{7,}", prose_line(project, page))
    page.write_text("# Data\n")
    assert prose_line(project, page).startswith("Changed since ")


def test_stale_page_says_so(project: Path, executed: dict[str, Path]) -> None:
    (project / "echovlsm" / "cohort" / "code.py").write_text("ANSWER = 43\n")
    book.stage("demo", executed, project / "staged", root=project)
    page = next(iter(executed))
    last = nbformat.read(project / "staged" / f"{page}.ipynb", as_version=4).cells[-1].source
    assert "**stale**: package changed since" in last
    assert "stale: package changed" in (project / "staged" / "book" / "status.md").read_text()


def test_record_of_an_earlier_execution_does_not_count(project: Path, executed: dict[str, Path]) -> None:
    page, path = next(iter(executed.items()))
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["papermill"]["end_time"] = "2026-05-05T00:00:00+00:00"
    nbformat.write(notebook, path)
    assert page_facts(project, page, path, "demo").state == UNKNOWN


def test_changed_cohort_makes_stale_and_vanished_cohort_cannot_tell(
    project: Path, executed: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, path = next(iter(executed.items()))
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["papermill"]["parameters"]["cohort"] = "data/cohorts/some"
    nbformat.write(notebook, path)
    answers: dict[str, str | None] = {"hash": "one"}
    monkeypatch.setattr(execution, "cohort_digest", lambda folder: answers["hash"])
    monkeypatch.setattr(execution.cohort_digest, "cache_clear", lambda: None, raising=False)
    execution.record_freshness(path, root=project)
    answers["hash"] = "two"
    assert page_facts(project, page, path, "demo").changed == ("data",)
    answers["hash"] = None
    assert page_facts(project, page, path, "demo").state == "fresh but for data, not here"


def test_missing_executed_notebook_is_an_error_that_names_page_and_remedy(
    project: Path, executed: dict[str, Path]
) -> None:
    page = list(executed)[-1]
    executed[page].unlink()
    with pytest.raises(book.BookError, match=rf"not executed: {page} .*snakemake .* book .*--allow-missing"):
        book.build("demo", executed, project / "_build", root=project)
    assert not (project / "_build" / "source").exists()

    facts = book.stage("demo", executed, project / "staged", root=project, allow_missing=True)
    assert [fact.state for fact in facts].count("not executed") == 1
    shown = nbformat.read(project / "staged" / f"{page}.ipynb", as_version=4)
    assert "was not executed" in shown.cells[0].source


def test_unknown_page_names_the_near_miss(project: Path, executed: dict[str, Path]) -> None:
    page = next(iter(executed))
    with pytest.raises(book.BookError, match=f"did you mean {page}"):
        book.stage("demo", {page.replace("_", "-"): executed[page]}, project / "staged", root=project)


def test_failed_execution_is_not_published(project: Path, executed: dict[str, Path]) -> None:
    page, path = next(iter(executed.items()))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]
    nbformat.write(notebook, path)
    with pytest.raises(book.BookError, match=f"{page}: cell 4 ended with an error"):
        book.stage("demo", executed, project / "staged", root=project)


def test_warning_fails_the_build_and_leaves_no_book(project: Path, executed: dict[str, Path]) -> None:
    (project / "book" / "data.md").write_text("# Data\n\nSee {doc}`/book/nowhere`.\n")
    with pytest.raises(book.BookError, match="nowhere"):
        book.build("demo", executed, project / "_build", root=project)
    assert not (project / "_build" / "_build" / "html").exists()


def test_record_holds_what_the_page_was_made_from(executed: dict[str, Path]) -> None:
    path = next(iter(executed.values()))
    record = json.loads(path.with_suffix(".freshness.json").read_text())
    assert record["parameters"] == {"scale": "demo", "prompt": "P3"}
    assert record["from_profile"] == ["prompt", "scale"]
    assert record["device"] == "CPU, 2 threads"
    assert set(record["parts"]) == {"notebook", "package", "parameters", "lock", "data", "weights", "results"}
    assert re.fullmatch("[0-9a-f]{12}", record["key"])

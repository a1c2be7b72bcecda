"""The built book in a browser: every page opens from a file, quietly, and what can be clicked answers.

Needs Chromium of the system (Debian: `apt-get install chromium`), or the path of one in ECHOVLSM_CHROMIUM.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_output

from book.tools import build as book
from echovlsm import STRUCTURES, models
from echovlsm.evaluation import dice
from echovlsm.explorer import export as explorer_export
from echovlsm.explorer import static as explorer_static
from echovlsm.explorer.asking import Explorer, choose_images
from echovlsm.published import claims, statistics, tables
from echovlsm.published import scores as published_scores
from tests.book.test_book import PIXEL, executed_notebook, project_files
from tests.conftest import ROOT, WEIGHTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = ["index", *book.toc_pages(ROOT)]
MAX_BYTES = 3_000_000
PHONE = {"width": 390, "height": 844}
UNNAMED = """all => all.filter(e => e.offsetParent !== null && !e.closest('.jupyter-widgets'))
    .filter(e => !(['aria-label', 'aria-labelledby', 'title'].some(name => e.getAttribute(name))
        || e.textContent.trim() || (e.labels && e.labels.length))).map(e => e.outerHTML.slice(0, 200))"""
TOO_WIDE = """all => all.map(table => {
    const column = table.closest('.cell_output, .pst-scrollable-table-container, section')
    return [table.getBoundingClientRect().width, column.getBoundingClientRect().width,
        (table.caption || table).innerText.slice(0, 60)]
}).filter(([width, room]) => width > room + 1)"""
BROKEN = """all => all.flatMap(code => {
    const found = [], range = document.createRange()
    const walk = document.createTreeWalker(code, NodeFilter.SHOW_TEXT)
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
        range.selectNodeContents(node)
        const lines = new Set([...range.getClientRects()].map(box => box.top)).size
        if (lines > 1 && !/[ -]/.test(node.data)) found.push(node.data)
    }
    return found
})"""
SPLIT = """all => all.flatMap(cell => {
    const found = [], range = document.createRange()
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT)
    for (let node = walk.nextNode(); node; node = walk.nextNode())
        for (const match of node.data.matchAll(/\\d[\\d.]*e[-\\u2011]\\d+/g)) {
            range.setStart(node, match.index)
            range.setEnd(node, match.index + match[0].length)
            if (new Set([...range.getClientRects()].map(box => box.top)).size > 1) found.push(match[0])
        }
    return found
})"""
ALT = "Dice with the left ventricular cavity: 0.90 as trained."


def wide_tables() -> list[Any]:
    """The widest tables of the book as readers get them: sentences, eleven columns, paths."""
    found, source = published_scores.load_results()
    ledger = claims.with_our_runs(found["ledger"], claims.our_runs(ROOT / "data/results/camus"))
    return [
        tables.ledger_table(ledger).hide(axis="index"),
        tables.comparison(found["comparisons"], statistics.GAIN, "PT-FT"),
        tables.source_table(source, "recorded").style,
        published_scores.load_settings().style.hide(axis="index"),
    ]


@pytest.fixture(scope="session")
def built(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, phantom_frames: pd.DataFrame
) -> SimpleNamespace:
    """A book of the real prose, stand-in notebooks and a real explorer; only made where it can be opened."""
    root = project_files(tmp_path_factory.mktemp("book") / "project")
    ask = Explorer(phantom_frames, {"tiny": models.load("clipseg", WEIGHTS)})
    keys = choose_images(phantom_frames, 2)
    executed = {}
    for page in book.notebook_pages(root):
        notebook = executed_notebook(f"About {Path(page).name}")
        shown = {"image/png": PIXEL, "text/plain": "<Figure>"}
        drawn = new_output("display_data", shown, metadata={"image/png": {"alt": ALT}})
        notebook.cells.insert(4, new_code_cell("figure", outputs=[drawn], id="figure"))
        executed[page] = root / "runs" / Path(page).name / f"{Path(page).name}.ipynb"
        executed[page].parent.mkdir(parents=True)
        if page.endswith("07_published"):
            for number, table in enumerate(wide_tables()):
                shown = new_output("display_data", {"text/html": table.to_html(), "text/plain": "<Styler>"})
                notebook.cells.insert(5, new_code_cell("table", outputs=[shown], id=f"table{number}"))
        if page.endswith("08_explorer"):
            static = executed[page].with_name("static")
            model = explorer_export.write_model(ask.net("tiny"), static / explorer_export.MODEL)
            live = explorer_static.page(explorer_static.answers(ask, keys, scale="smoke", live=model))
            shown = new_output("display_data", {"text/html": live, "text/plain": "<HTML>"})
            notebook.cells.insert(5, new_code_cell("explorer", outputs=[shown], id="explorer"))
        nbformat.write(notebook, executed[page])
    index = book.build("demo", executed, root / "_build", root=root)
    return SimpleNamespace(html=index.parent, notebooks=set(executed), ask=ask, keys=keys)


@pytest.fixture
def opened(browser: Browser, built: SimpleNamespace) -> Iterator[Any]:
    """A function that opens a page, and the complaints of the browser about it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))

    def host(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "about:")):
            complaints.append(f"another host: {request.url}")

    page.on("request", host)

    def open_page(name: str) -> Page:
        page.goto((built.html / f"{name}.html").as_uri())
        page.wait_for_load_state("load")
        return page

    open_page.complaints = complaints
    yield open_page
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_page_opens_quietly_and_is_accessible(opened: Any, built: SimpleNamespace, name: str) -> None:
    page = opened(name)
    if name == "index":
        page.wait_for_url("**/book/intro.html")
    if name in built.notebooks:
        page.wait_for_selector("mjx-container")
        page.wait_for_selector(".widget-slider, .jupyter-widgets")
    assert opened.complaints == []
    assert (built.html / f"{name}.html").stat().st_size < MAX_BYTES

    levels = page.eval_on_selector_all(
        "article.bd-article :is(h1,h2,h3,h4,h5,h6)", "found => found.map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels

    images = page.eval_on_selector_all(".bd-article img", "all => all.map(i => [i.alt, i.naturalWidth > 0])")
    assert all(loaded for _, loaded in images)
    if name in built.notebooks:
        assert ALT in [alt for alt, _ in images]
        assert page.locator("table.dataframe").count() >= 1
    unnamed = page.eval_on_selector_all(
        ".bd-article :is(button, select, input, textarea, svg[role=img], canvas)", UNNAMED
    )
    assert unnamed == []

    assert page.eval_on_selector_all(".bd-article table", TOO_WIDE) == []
    assert page.eval_on_selector_all(".bd-article td code", BROKEN) == [], "a name broken in mid-word"
    page.set_viewport_size(PHONE)
    assert page.eval_on_selector_all(".bd-article table", TOO_WIDE) == [], "on a phone"
    assert page.eval_on_selector_all(".bd-article td", SPLIT) == [], "a p-value in two lines"
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1, "a phone need not scroll sideways"


def test_the_landing_page_lights_up_what_a_sentence_names(opened: Any) -> None:
    page = opened("book/intro")
    lit = page.locator(".hero svg path.lit")
    assert lit.get_attribute("data-structure") == STRUCTURES[1]
    page.get_by_role("button", name="Myocardium").click()
    assert lit.get_attribute("data-structure") == "myocardium"
    page.keyboard.press("Tab")
    assert lit.get_attribute("data-structure") == "left atrium cavity"
    pressed = page.locator('.hero button[aria-pressed="true"]')
    assert pressed.count() == 1
    assert pressed.get_attribute("data-structure") == "left atrium cavity"
    below = page.eval_on_selector_all(".sd-card", "cards => cards.map(c => c.getBoundingClientRect().bottom)")
    assert len(below) == 3
    assert max(below) <= 800, "the three doors are on the first screen"
    assert opened.complaints == []


def test_the_explorer_answers_as_the_model_does(opened: Any, built: SimpleNamespace) -> None:
    page = opened("notebooks/08_explorer")
    page.wait_for_selector('.echovlsm-explorer[data-ready="yes"]')
    left = page.locator(".explorer-panel").first

    def shown() -> tuple[str, float]:
        page.wait_for_timeout(300)
        score = left.locator(".explorer-dice").inner_text()
        return left.locator("textarea").input_value(), float(score.split()[1])

    def expected(number: int, structure: str, level: str) -> tuple[str, float]:
        key = built.keys[number]
        text = built.ask.prompt(key, structure, level)
        truth = built.ask.image(key).reference(structure)
        value = dice(built.ask.ask(key, text).mask(), truth)
        return text, pytest.approx(value, abs=0.01)

    assert shown() == expected(0, STRUCTURES[1], "P1")
    page.get_by_label("myocardium").check()
    assert shown() == expected(0, "myocardium", "P1")
    left.get_by_label("Left: prompt").select_option(label="P3 · phase")
    assert shown() == expected(0, "myocardium", "P3")
    page.locator(".explorer-controls select").select_option(index=1)
    assert shown() == expected(1, "myocardium", "P3")

    text = "Typed into the book."
    left.locator("textarea").fill(text)
    page.wait_for_function("document.querySelector('.explorer-panel canvas').answer.milliseconds > 0")
    mask = page.evaluate("Array.from(document.querySelector('.explorer-panel canvas').answer.mask)")
    theirs = built.ask.ask(built.keys[1], text).mask().ravel()
    assert (theirs != mask).mean() <= 0.001
    assert opened.complaints == []


def test_the_explorer_is_reached_by_keyboard(opened: Any) -> None:
    page = opened("notebooks/08_explorer")
    page.wait_for_selector('.echovlsm-explorer[data-ready="yes"]')
    dice = page.locator(".explorer-dice").first
    before = dice.inner_text()
    page.locator(".echovlsm-explorer select").first.focus()
    reached = []
    for _ in range(11):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.type || document.activeElement.tagName"))
    assert reached[:5] == ["radio", "radio", "range", "checkbox", "file"]
    assert reached[5:11] == ["select-one", "select-one", "textarea"] * 2
    page.locator('.echovlsm-explorer input[type="range"]').focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert page.locator(".explorer-controls").inner_text().count("0.80") == 1
    assert dice.inner_text() != before
    assert opened.complaints == []


def test_figures_stay_on_white_and_the_panel_follows_the_theme(
    browser: Browser, built: SimpleNamespace
) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto((built.html / "notebooks" / "08_explorer.html").as_uri())
    page.wait_for_selector('.echovlsm-explorer[data-ready="yes"]')
    ground = "element => getComputedStyle(element).backgroundColor"
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.eval_on_selector(".cell_output img", ground) == "rgb(255, 255, 255)"
    assert page.eval_on_selector(".text_html:has(.echovlsm-explorer)", ground) == "rgba(0, 0, 0, 0)"
    context.close()

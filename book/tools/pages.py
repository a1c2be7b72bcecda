"""An executed notebook becomes a page: what was found first, bookkeeping folded, no progress bars."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nbformat.v4 import new_markdown_cell, new_output

from book.tools.freshness import RECORDED, UNKNOWN, BookError, PageFacts

_SCALE_NOTES = {
    "smoke": "**Smoke scale.** A test of the machinery that takes seconds. Its numbers mean nothing.",
    "demo": "**Demo scale.** A small run that shows how the study works. Its numbers are not findings.",
    "full": "**Full scale.**",
}
_RECORDED_NOTE = (
    "**On record.** Nothing was trained for this page. Each figure names scale and cohort of its numbers."
)
_NOT_EXECUTED = ":::{warning}\nThis notebook was not executed: it is shown without results.\n:::"
_LIVE = "*This opens in the notebook. A version that needs no notebook follows further down on this page.*"
_WIDGET = "application/vnd.jupyter.widget-view+json"
_ANSWER, _EXPECT = "## What we saw", "**What to expect.**"
# What opens or closes a run's record in a notebook.
_RECORD = re.compile(r"\b(?:page\.open|record\.(?:start|finish|discard))\(")
# A long path in a table's cell may be broken after a slash, a dot or an underscore, not elsewhere.
_CELL = re.compile(r"(?<=>)[^<>]+(?=</t[dh]>)")
_LONG = re.compile(r"[\w./:=-]{18,}")
_EXPONENT = re.compile(r"(?<=\de)-(?=\d)")
_PART = re.compile(r"(?<=[/_.])(?=\w)")
_PROGRESS = re.compile(r"\d+%\|.*\||\d+(?:\.\d+)?\s?(?:it|[a-z]+) \[\d+:\d+|^\s*Executing: ")


def box(classes: str, text: str) -> str:
    """Markdown of a container with these CSS classes."""
    return f":::{{container}} {classes}\n{text}\n:::"


def breakable(text: str) -> str:
    """HTML text that may be broken after a slash, a dot or an underscore."""
    return _PART.sub("<wbr>", text)


def dress(notebook: Any, fact: PageFacts) -> None:
    """Make a notebook a page, in place.

    The scale stands below the title and the freshness line at the end; a section tagged ``with-results`` that
    shows nothing is left out.

    Raises
    ------
    BookError
        A cell ended with an error, or the notebook does not begin with a title.
    """
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

    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        raise BookError(f"{fact.page}: the first cell must be Markdown and begin with the title, `# ...`")
    title, _, rest = first.source.partition("\n")
    first.source = f"{title}\n\n{_scale_note(fact)}\n{rest}"
    notebook.cells.append(new_markdown_cell(box("freshness", fact.line), id="freshness"))


def _scale_note(fact: PageFacts) -> str:
    if fact.state == "not executed":
        return _NOT_EXECUTED
    told = _SCALE_NOTES.get(fact.scale, f"**Scale {fact.scale}.**")
    if fact.cohort.startswith(RECORDED):
        told = _RECORDED_NOTE
    elif fact.cohort != UNKNOWN:
        told += f" Cohort: {fact.cohort}."
    return box(f"scale-note scale-{fact.scale}", told)


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
    """Cells with bookkeeping (see `_bookkeeping`) collapsed; neighbours without an output become one."""
    shown: list[Any] = []
    held: list[str] = []  # what the last cell of `shown` holds, if it is folded and has no output
    for cell in cells:
        words = _bookkeeping(cell)
        if not words:
            shown.append(cell)
            held = []
            continue
        bare = not cell.outputs
        if held and bare:
            shown[-1].source += f"\n\n{cell.source}"
            held += [word for word in words if word not in held]
        else:
            shown.append(cell)
            held = words
        told = " and ".join(filter(None, [", ".join(held[:-1]), held[-1]]))
        metadata = shown[-1].metadata
        kept = [tag for tag in metadata.get("tags", []) if not tag.startswith(("remove-", "hide-"))]
        metadata["tags"] = [*kept, "hide-input"]
        prompts = {"code_prompt_show": f"Show {told}", "code_prompt_hide": f"Hide {told}"}
        metadata.setdefault("mystnb", {}).update(prompts)
        held = held if bare else []
    return shown


def _bookkeeping(cell: Any) -> list[str]:
    """What of parameters, imports and record-keeping a cell holds; empty for a cell that is to be read."""
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
    return _LONG.sub(lambda word: breakable(word[0]), text)


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

"""Executing a notebook without what only shows something, and the schedule that executed notebooks tell."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from echovlsm.study import execution
from tests.conftest import ROOT


def _executed(path: Path, start: str, end: str) -> None:
    notebook = new_notebook(metadata={"papermill": {"start_time": start, "end_time": end}})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def test_cells_to_look_at_are_left_out_on_request_and_the_notebook_says_so(tmp_path: Path) -> None:
    cells = [
        new_code_cell("number: int = 1  # of something", metadata={"tags": ["parameters"]}),
        new_code_cell("raise RuntimeError('looked')", metadata={"tags": [execution.LOOK]}),
        new_code_cell("print(f'number {number}')"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    source = tmp_path / "source.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata=kernel), source)
    out = execution.execute(source, tmp_path / "out.ipynb", {"number": 2}, look=False, progress=False)
    kept = nbformat.read(out, as_version=4)
    assert execution.LEFT_OUT in [cell.source for cell in kept.cells]
    assert not [cell for cell in kept.cells if "looked" in cell.source]
    assert kept.cells[-1].outputs[0].text == "number 2\n"


@pytest.mark.parametrize("name", ["04_training", "05_evaluation"])
def test_no_cell_rests_on_one_that_only_shows_something(name: str) -> None:
    """What such a cell defines, others that stay do not use, unless they define it themselves."""

    def names(source: str, kind: type[ast.expr_context]) -> set[str]:
        found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
        return {node.id for node in found if isinstance(node.ctx, kind)}

    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    looks = [cell for cell in code if execution.LOOK in cell.metadata.get("tags", [])]
    stay = [cell.source for cell in code if cell not in looks]
    assert looks
    only_there = set().union(*(names(cell.source, ast.Store) for cell in looks))
    only_there -= set().union(*(names(source, ast.Store) for source in stay))
    assert not only_there & set().union(*(names(source, ast.Load) for source in stay))


def test_the_schedule_is_that_of_the_longest_stretch_of_work(tmp_path: Path) -> None:
    day = "2026-01-02T10:{}:00.000000"
    _executed(tmp_path / "a" / "01_cohort.ipynb", day.format("00"), day.format("01"))  # another occasion
    _executed(tmp_path / "a" / "02_synthesis.ipynb", day.format("10"), day.format("13"))
    _executed(tmp_path / "b" / "04_training.ipynb", day.format("11"), day.format("12"))
    _executed(tmp_path / "b" / "05_evaluation.ipynb", day.format("14"), day.format("15"))
    _executed(tmp_path / "b" / "06_results.failed.ipynb", day.format("15"), day.format("16"))
    _executed(tmp_path / "c" / "05_evaluation.ipynb", day.format("30"), day.format("31"))  # and another
    table = execution.schedule(tmp_path)
    assert table["notebook"].tolist() == ["02_synthesis", "04_training", "05_evaluation"]
    assert table["run"].tolist() == ["a", "b", "b"]
    assert table["start"].tolist() == pytest.approx([0, 1, 4])
    assert table["end"].tolist() == pytest.approx([3, 2, 5])
    assert isinstance(execution.schedule(tmp_path / "nothing"), pd.DataFrame)
    assert execution.schedule(tmp_path / "nothing").empty

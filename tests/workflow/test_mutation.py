"""The mutation check changes what it says, and its recorded result is good enough."""

from __future__ import annotations

import ast

import pandas as pd
import pytest

from tests.conftest import ROOT
from tests.mutation import RESULTS, TESTS, Mutant, draw, mutants

FILE = "echovlsm/evaluation/scoring.py"


@pytest.fixture(scope="module")
def changes() -> list[Mutant]:
    return mutants(FILE)


def test_each_change_is_one_and_the_module_can_still_be_read(changes: list[Mutant]) -> None:
    plain = ast.unparse(ast.parse((ROOT / FILE).read_text()))
    assert len(changes) > 100
    assert plain not in {mutant.source for mutant in changes}
    for mutant in changes:
        ast.parse(mutant.source)
        assert mutant.original != mutant.mutated


def test_what_no_test_could_notice_is_left_alone(changes: list[Mutant]) -> None:
    text = (ROOT / FILE).read_text()
    raised = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Raise)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    assert raised
    assert not raised & {mutant.line for mutant in changes}
    assert "TYPE_CHECKING" not in {mutant.original for mutant in changes}
    source = text.splitlines()
    assert not [m for m in changes if "balanced_tree" in source[m.line - 1] and m.original == "False"]


def test_the_draw_is_the_seeds_and_takes_different_lines() -> None:
    first, other = draw(10, 0), draw(10, 1)
    assert first != other
    assert draw(10, 0) == first
    assert len({(mutant.file, mutant.line) for mutant in first}) == 10


def test_nine_of_ten_recorded_changes_were_noticed() -> None:
    table = pd.read_csv(RESULTS / "mutations.csv")
    assert list(table.columns)[:6] == ["file", "line", "change", "original", "mutated", "caught"]
    assert set(table["file"]) <= set(TESTS)
    assert len(table) >= 10
    assert table["caught"].mean() >= 0.9
    assert table.loc[table["caught"], "by"].notna().all()

"""A notebook's page: its run folder, and what its figures and tables carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from echovlsm.study.page import Page, begin
from echovlsm.study.parameters import ParameterError

META = {"name": "phantom-tiny", "kind": "phantom"}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setenv("ECHOVLSM_ROOT", str(tmp_path))
    return Page("01_cohort", {"profile": "p", "scale": "smoke", "cohort": "data/here", "redo": False})


def _stamp(page: Page, *where: str) -> str:
    figure = plt.figure()
    page.stamp(figure, *where)
    plt.close(figure)
    return figure.get_supxlabel()


def test_the_run_folder_follows_from_profile_cohort_and_notebook(page: Page, tmp_path: Path) -> None:
    assert page.open(META, data_hash="a")
    assert page.record.path == tmp_path / "runs" / "p" / "here" / "01_cohort"
    page.record.finish()
    known = page.record.record
    assert (known["cohort"], known["kind"], known["data_hash"]) == ("phantom-tiny", "phantom", "a")
    assert not page.open(META, data_hash="a")


def test_a_named_folder_goes_before_the_notebooks_own(page: Page, tmp_path: Path) -> None:
    page.open(META, run="runs/elsewhere")
    assert page.record.path == tmp_path / "runs" / "elsewhere"
    page.parameters["run"] = "runs/mine"
    page.open(META, run="runs/elsewhere")
    assert page.record.path == tmp_path / "runs" / "mine"


def test_figures_say_the_cohort_that_is_open_or_their_own(page: Page) -> None:
    frames = pd.DataFrame({"patient": []})
    frames.attrs["meta"] = META
    page.open(frames)
    assert _stamp(page).startswith("scale: smoke · cohort: phantom-tiny (phantom)")
    assert _stamp(page, "CAMUS", "real", "full") == "scale: full · cohort: CAMUS (real)"
    assert _stamp(page, "another", "phantom").startswith("scale: smoke · cohort: another (phantom)")


def test_a_table_has_its_caption_and_its_index_on_request(page: Page) -> None:
    table = pd.DataFrame({"dice": [0.9]})
    assert page.table(table, "Dice.").caption == "Dice."
    assert page.table(table).caption is None
    assert ">0</th>" in page.table(table).to_html()
    assert ">0</th>" not in page.table(table, index=False).to_html()


def test_headings_are_words_and_the_table_stays(page: Page) -> None:
    table = pd.DataFrame([[1.0, 2.0, 3.0, 4.0]], columns=["peak_memory_gib", "our_own", "given", 7])
    shown = page.table(table.style.format("{:.1f}")).to_html()
    for heading in ("peak memory (GiB)", "our own", "given", "7"):
        assert f">{heading}</th>" in shown
    assert "our_own" not in shown
    assert ">val dice</th>" in page.table(pd.DataFrame({"run": [0.9]}, index=["val_dice"])).to_html()
    assert list(table)[:2] == ["peak_memory_gib", "our_own"]


def test_beginning_names_a_wrong_parameter() -> None:
    asked: dict[str, Any] = {"__annotations__": {"scale": "str"}, "scale": "small"}
    with pytest.raises(ParameterError, match="parameter `scale` is 'small'"):
        begin(asked, "mine")

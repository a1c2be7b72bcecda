"""The claims ledger: every claim is there, and its verdict follows from the evidence."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from echovlsm.published import claims
from echovlsm.published import scores as published
from echovlsm.published.claims import verdict
from echovlsm.published.evidence import EVIDENCE, Check
from echovlsm.published.scores import PublishedError
from tests.conftest import ROOT


@pytest.fixture
def recorded() -> dict[str, pd.DataFrame]:
    return published.load_results()[0]


def test_the_ledger_has_every_claim(recorded: dict[str, pd.DataFrame]) -> None:
    ledger = claims.ledger(recorded)
    assert set(ledger["fact"].dropna()) == set(range(1, 12))
    assert list(ledger["id"]) == list(claims.load_claims()["id"])
    assert ledger["id"].is_unique
    assert set(ledger["id"]) == set(EVIDENCE)
    assert set(ledger["verdict"]) <= set(claims.VERDICTS)
    # a claim that can be checked has a number of its own, and one that does not simply hold has a reason
    can = ~ledger["verdict"].isin(["premise false", "cannot be checked", "not a finding"])
    assert (ledger.loc[can, "recomputed"] != "").all()
    assert (ledger.loc[ledger["verdict"] != "holds", "reason"] != "").all()


def test_the_recorded_ledger_follows_from_the_recorded_tables(recorded: dict[str, pd.DataFrame]) -> None:
    assert claims.drift({**recorded, "ledger": claims.ledger(recorded)}, recorded) == []


def test_every_claim_links_to_a_section_of_the_notebook() -> None:
    for link in claims.load_claims()["section"]:
        page, _, section = link.rpartition("#")
        name = page.removesuffix(".html") or "07_published"
        cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        assert f"({section})=\n#" in text


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ((), "cannot be checked"),
        ((Check(True, "a", essential=True), Check(True, "b")), "holds"),
        ((Check(True, "a", essential=True), Check(False, "b")), "holds weakly"),
        ((Check(False, "a", essential=True), Check(True, "b")), "does not hold"),
        ((Check(True, "a", essential=True), Check(False, "b", against=True), Check(False, "c")), "mixed"),
        ((Check(False, "a", essential=True), Check(False, "b", against=True)), "does not hold"),
        ((Check(False, "a", premise=True), Check(False, "b", essential=True)), "premise false"),
    ],
)
def test_a_verdict_follows_from_its_checks(checks: tuple[Check, ...], expected: str) -> None:
    word, reason = verdict(checks)
    assert word == expected
    assert reason == "; ".join(check.failure for check in checks if not check.passed)


def test_verdicts_change_with_the_evidence(recorded: dict[str, pd.DataFrame]) -> None:
    def of(**tables: pd.DataFrame) -> pd.Series:
        return claims.ledger({**recorded, **tables}).set_index("id")["verdict"]

    before = of()
    assert before["pretraining-headline"] == "holds weakly"
    chance = of(comparisons=recorded["comparisons"].assign(p_max=0.4))
    assert chance["pretraining-headline"] == "does not hold"
    # the swap of all cells at once is no correction and decides nothing
    assert (of(selection=recorded["selection"].assign(p_exchangeable=0.4)) == before).all()
    steady = recorded["spread"].copy()
    steady["difference"] /= 100 ** (steady["model"] == "CLIPSeg")
    head = recorded["headline"].assign(difference=recorded["headline"]["given_difference"])
    assert of(spread=steady, headline=head)["pretraining-headline"] == "holds"
    assert before["pretraining-both-models"] == "mixed"
    table = recorded["comparisons"]
    unharmed = table.assign(p_patient_holm=table["p_patient_holm"].where(table["difference"] > 0, 0.4))
    assert of(comparisons=unharmed)["pretraining-both-models"] == "holds weakly"
    lost = recorded["gains"].assign(mean=recorded["gains"]["mean"] - 0.3)
    assert of(gains=lost)["augmenting-improves"] == "does not hold"


def test_the_limit_of_one_cell_decides_nothing_about_means(recorded: dict[str, pd.DataFrame]) -> None:
    wide = recorded["spread"].copy()
    wide["difference"] *= 100.0 ** (wide["model"] == "CLIPSeg")
    before, after = (
        claims.ledger({**recorded, "spread": spread}).set_index("id") for spread in (recorded["spread"], wide)
    )
    for name in ("augmenting-improves", "good-starting-point", "unfreezing-cris"):
        assert before.loc[name, "verdict"] == "holds weakly"
        assert after.loc[name, "recomputed":"reason"].equals(before.loc[name, "recomputed":"reason"])
        assert "limit" not in before.loc[name, "reason"]


def test_an_interval_is_of_one_estimate(recorded: dict[str, pd.DataFrame]) -> None:
    rows = claims.ledger(recorded).set_index("id")
    own = recorded["gains"].query("`from` == 'Table 2, scores'")
    for name in ("augmenting-improves", "good-starting-point"):
        assert rows.loc[name, ["low", "high"]].isna().all()
        for row in own.itertuples():
            assert f"{row.mean:+.2f}, 95 % {row.low:+.2f} to {row.high:+.2f}" in rows.loc[name, "recomputed"]


def test_proposals_are_no_findings(recorded: dict[str, pd.DataFrame]) -> None:
    rows = claims.ledger(recorded).set_index("id")
    expected = {"closer-to-augmentation", "future-joint-training", "future-triplets"}
    assert set(rows.index[rows["verdict"] == "not a finding"]) == expected


def test_the_page_states_the_rule_of_every_verdict() -> None:
    cells = nbformat.read(ROOT / "notebooks" / "07_published.ipynb", as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert all(f"- **{word}**: " in prose for word in claims.VERDICTS)


def test_what_did_not_take_place_is_neither_borne_out_nor_refuted(recorded: dict[str, pd.DataFrame]) -> None:
    rows = claims.ledger(recorded).set_index("id")
    for name in ("unfreezing-clipseg-real", "unfreezing-clipseg-synthetic", "clipseg-explained"):
        assert rows.loc[name, "verdict"] == "premise false"
        assert "no gradient in Transformers 4.31.0" in rows.loc[name, "reason"]


def test_claims_of_which_only_a_table_exists_are_judged_by_one_rule(
    recorded: dict[str, pd.DataFrame],
) -> None:
    rows = claims.ledger(recorded).set_index("id")
    alone = rows[rows["reason"].str.contains("only the paper's table")]
    assert {"zero-shot-fails", "unfreezing-cris", "empty-prompt"} <= set(alone.index)
    assert set(alone["verdict"]) == {"holds weakly"}


def test_numbers_of_the_claims_are_those_of_the_text() -> None:
    rows = claims.load_claims().set_index("id")
    for row in rows[rows["value"].notna()].itertuples():
        assert f"{row.value:g}" in row.given
        assert pd.isna(row.p) or f"{row.p:.1e}" in row.given


def test_a_missing_table_is_named(recorded: dict[str, pd.DataFrame]) -> None:
    del recorded["gains"]
    with pytest.raises(PublishedError, match=r"'gains'.*compute --scores"):
        claims.ledger(recorded)


def write_run(folder: Path, kind: str, scale: str, dice: dict[str, float]) -> None:
    folder.mkdir(parents=True)
    record = {"kind": kind, "scale": scale, "evaluation": {"parameters": {"evaluate_on": "val"}}}
    (folder / "run.yaml").write_text(yaml.safe_dump(record))
    known = {"scale": scale, "cohort": "camus", "model": "clipseg", "encoders": "unfrozen", "seed": 1}
    rows = [
        known | {"prompt": "P1", "strategy": strategy, "dice": value + shift}
        for strategy, value in dice.items()
        for shift in (-0.1, 0.1)
    ]
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet")


def test_our_runs_enter_by_scale_and_phantoms_do_not(
    tmp_path: Path, recorded: dict[str, pd.DataFrame]
) -> None:
    write_run(tmp_path / "a", "real", "full", {"real": 0.8, "synthetic": 0.7, "zeroshot": 0.2})
    write_run(tmp_path / "b", "phantom", "demo", {"real": 0.9})
    runs = claims.our_runs(tmp_path)
    assert set(runs["scale"]) == {"full"}
    assert (runs["masks"] == 2).all()
    table = claims.with_our_runs(claims.ledger(recorded), runs).set_index("id")
    assert table.loc["synthetic-below-real", "ours full"] == "-10.00 (val)"
    assert table.loc["zero-shot-fails", "ours full"] == "20.00 (val)"
    assert table.loc["pretraining-headline", "ours full"] == "NA"
    assert "ours demo" not in table


def test_without_runs_of_ours_the_column_says_na(tmp_path: Path, recorded: dict[str, pd.DataFrame]) -> None:
    table = claims.with_our_runs(claims.ledger(recorded), claims.our_runs(tmp_path))
    assert set(table["ours full"]) == {"NA"}

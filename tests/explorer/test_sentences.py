"""Sixty sentences: what they are, that training has not seen some, and what is counted of the answers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from echovlsm import STRUCTURES, models
from echovlsm.evaluation import dice
from echovlsm.explorer import sentences
from echovlsm.explorer.asking import Explorer, choose_images
from echovlsm.explorer.images import LEAST_SHARE, share_outlined
from echovlsm.prompts import make_prompts
from echovlsm.prompts.negatives import NOUNS, other_sentences
from tests.conftest import WEIGHTS

FRAME = set(["a", "an", "the", "two", "on", "of", "in", "over", "across", "with", "from", "my"])
"""Words that carry no meaning of their own."""
TEMPLATE = set(["left", "cavity", "heart", "cardiac", "ultrasound"])
"""Words of the templates, which some sentences about something else have as well, to be harder."""


def words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text.lower()))


def test_there_are_twenty_of_each_kind_and_no_two_alike() -> None:
    assert [len(said) for said in sentences.KINDS.values()] == [20, 20, 20]
    texts = [text for said in sentences.KINDS.values() for _, text in said]
    assert len(set(texts)) == 60
    named = {name for kind in ("right words", "other words") for name, _ in sentences.KINDS[kind]}
    assert named == set(STRUCTURES.values())
    assert all(name in text.lower() for name, text in sentences.KINDS["right words"])
    assert not any(name in text.lower() for name, text in sentences.KINDS["other words"])


def test_training_has_seen_no_noun_of_what_is_about_something_else(phantom_frames: pd.DataFrame) -> None:
    prompts = make_prompts(phantom_frames, missing="omit")["text"].unique()
    drawn = [text for seed in range(3) for text in other_sentences(prompts, STRUCTURES.values(), 4096, seed)]
    seen = {word for text in (*prompts, *drawn) for word in words(text)}
    assert {noun.lower() for noun in NOUNS} <= seen  # so many sentences hold every noun
    looks = set(["red", "old", "tallest"])
    for text in sentences.SOMETHING_ELSE:
        nouns = words(text) - FRAME - TEMPLATE - looks
        assert nouns, text
        assert not nouns & seen, text


@pytest.fixture(scope="module")
def tried(phantom_frames: pd.DataFrame) -> tuple[Explorer, pd.DataFrame]:
    few = phantom_frames[phantom_frames["patient"] == phantom_frames["patient"].iloc[0]]
    few.attrs = phantom_frames.attrs
    ask = Explorer(few, {"tiny": models.load("clipseg", WEIGHTS, image_size=48)})
    return ask, sentences.try_sentences(ask)


def test_answers_are_those_that_the_explorer_gives(tried: tuple[Explorer, pd.DataFrame]) -> None:
    ask, table = tried
    assert len(table) == 60 * len(ask.keys)
    assert table.loc[table["kind"] == "something else", "dice"].isna().all()
    for row in table.iloc[[3, 45, 75]].itertuples():
        key = (row.patient, row.view, row.phase)
        mask = ask.ask(key, row.sentence).mask()
        assert row.outlined == (share_outlined(mask, ask.image(key).pixels) >= LEAST_SHARE)
        if row.kind != "something else":
            assert row.dice == pytest.approx(dice(mask, ask.image(key).reference(row.structure)), abs=1e-3)


def _answers(outlined: float, values: list[float]) -> pd.DataFrame:
    rows = [
        (f"p{number}", "2CH", "ED", kind, outlined, value if kind != "something else" else np.nan)
        for number, value in enumerate(values)
        for kind in sentences.KINDS
    ]
    return pd.DataFrame(rows, columns=["patient", "view", "phase", "kind", "outlined", "dice"])


def test_the_page_opens_on_the_median(phantom_frames: pd.DataFrame) -> None:
    table = _answers(1.0, [0.9, 0.1, 0.7, 0.3])
    assert sentences.median_image(table) == ("p3", "2CH", "ED")
    row = phantom_frames.iloc[5]
    key = (row["patient"], row["view"], row["phase"])
    chosen = choose_images(phantom_frames, 3, first=key)
    assert chosen[0] == key
    assert len({patient for patient, _, _ in chosen}) == 3


def test_what_has_changed_is_told_with_its_interval() -> None:
    before, now = (
        sentences.by_patient(_answers(*values))
        for values in ((1.0, [0.8, 0.7, 0.9]), (0.0, [0.79, 0.68, 0.9]))
    )
    compared = sentences.compare(now, before)
    right = compared.loc["right words"]
    assert right["dice_change"] == pytest.approx(-0.01)
    assert right["dice_low"] < right["dice_change"] < right["dice_high"] <= 0
    assert compared.loc["something else", "outlined_change"] == -1
    told = sentences.told(compared)
    assert "outlines something in 0.0% of the answers (100.0% without negatives in training)" in told
    assert "-0.010, 95% interval" in told
    assert "Without negatives" not in sentences.told(sentences.compare(now))


def test_the_record_holds_for_its_own_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "RECORD", str(tmp_path))
    assert sentences.recorded("abc") is None
    table = sentences.by_patient(_answers(1.0, [0.8, 0.7]))
    table.to_csv(tmp_path / "sentences.csv", index=False)
    (tmp_path / "about.yaml").write_text("data_hash: abc\n")
    assert sentences.recorded("other") is None
    pd.testing.assert_frame_equal(sentences.recorded("abc"), table, check_dtype=False)

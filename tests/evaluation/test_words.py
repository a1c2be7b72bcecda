"""Swapped words: one clause is false at a time, and the scores say what the model did with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from echovlsm import STRUCTURES, models
from echovlsm.cohort.images import load_labels
from echovlsm.evaluation import words
from echovlsm.evaluation.scoring import score, to_mask
from echovlsm.evaluation.words import (
    AGE_APART,
    AGES,
    false_prompts,
    swappable,
    word_effects,
)
from echovlsm.models.common import ModelError
from echovlsm.models.unet import ReferenceUNet
from echovlsm.prompts.shapes import name_shapes
from echovlsm.prompts.templates import PromptError, make_prompts
from echovlsm.prompts.vqa import SHAPES
from echovlsm.training.loop import predict
from echovlsm.training.triplets import make_triplets
from tests.conftest import WEIGHTS
from tests.prompts.parsing import parse_prompt

SAID = ("structure", "view", "phase", "sex", "age", "quality", "shape")
MASK = ["patient", "view", "phase", "structure"]


@pytest.fixture(scope="module")
def frames(phantom_frames: pd.DataFrame) -> pd.DataFrame:
    """Two phantom patients, eight images."""
    chosen = phantom_frames["patient"].unique()[:2]
    return phantom_frames[phantom_frames["patient"].isin(chosen)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return models.load("clipseg", WEIGHTS).eval()


class Reader(nn.Module):
    """An oracle that reads the structure, and the sex if `listens`: asked about a female it finds nothing.

    Its images are label maps times 80.
    """

    image_size = 96

    def __init__(self, listens: bool = False) -> None:
        super().__init__()
        self.listens, self.texts = listens, []

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.texts = list(texts)
        numbers = torch.arange(len(texts))[:, None]
        return numbers, torch.ones_like(numbers)

    def normalise(self, images: Tensor) -> Tensor:
        return images[:, None].float()

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        numbers = {name: value for value, name in STRUCTURES.items()}
        logits = []
        for image, row in zip(pixels[:, 0], input_ids[..., 0], strict=True):
            for number in row:
                said = parse_prompt(self.texts[number])
                found = ((image - 80 * numbers[said["structure"]]).abs() < 40).float() * 20 - 10
                logits.append(torch.full_like(found, -10) if self.listens and said["sex"] == "F" else found)
        return torch.stack(logits).unflatten(0, input_ids.shape[:2])


@pytest.fixture
def label_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "load_image", lambda row: load_labels(row) * np.uint8(80))


@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize("level", ["P1", "P3", "P7"])
def test_exactly_one_clause_is_false(frames: pd.DataFrame, level: str, variant: int) -> None:
    table = false_prompts(frames, level, variant)
    assert tuple(table["swapped"].unique()) == swappable(level)
    assert len(table) == len(frames) * 3 * len(swappable(level))
    for row in table.itertuples():
        true, false = parse_prompt(row.true_text), parse_prompt(row.text)
        assert {name for name in true if true[name] != false[name]} == {row.swapped}
        assert true[row.swapped] == row.true_value
        assert false[row.swapped] == row.false_value
        assert (false["level"], false["variant"]) == (level, variant)
        assert true["structure"] == row.structure


def test_true_texts_are_those_of_make_prompts(frames: pd.DataFrame) -> None:
    shapes = name_shapes(frames, progress=False)
    expected = make_prompts(frames, shapes, levels=("P7",)).query("variant == 1").set_index(MASK)["text"]
    table = false_prompts(frames, "P7", "1").set_index(MASK)
    for name in swappable("P7"):
        part = table.loc[table["swapped"] == name, "true_text"]
        assert part.to_dict() == expected.to_dict()


def test_false_values_are_known_and_false(frames: pd.DataFrame) -> None:
    tables = pd.concat([false_prompts(frames, "P7", seed=seed) for seed in range(5)])
    for name, part in tables.groupby("swapped"):
        assert (part["true_value"] != part["false_value"]).all()
        if name == "age":
            assert part["false_value"].between(*AGES).all()
            assert ((part["false_value"] - part["true_value"]).abs() >= AGE_APART).all()
            assert part["false_value"].nunique() > 5
    assert set(tables.loc[tables["swapped"] == "shape", "false_value"]) <= set(SHAPES)
    swapped = tables[tables["swapped"] == "structure"]
    assert set(zip(swapped["true_value"], swapped["false_value"], strict=True)) == {
        (a, b) for a in STRUCTURES.values() for b in STRUCTURES.values() if a != b
    }


def test_draws_depend_on_seed_and_image_alone(frames: pd.DataFrame) -> None:
    whole = false_prompts(frames, "P7", seed=4).set_index([*MASK, "swapped"])["text"]
    one = false_prompts(frames.iloc[[5]], "P7", seed=4).set_index([*MASK, "swapped"])["text"]
    assert (whole.loc[one.index] == one).all()
    other = false_prompts(frames, "P7", seed=5).set_index([*MASK, "swapped"])["text"]
    assert (whole != other).any()
    fixed = whole.index.get_level_values("swapped").isin(["view", "phase", "sex"])  # one other word each
    assert (whole == other)[fixed].all()


def test_absent_attributes_are_not_swapped(frames: pd.DataFrame) -> None:
    gaps = frames.copy()
    gaps["age"] = gaps["age"].astype("Int64")
    gaps.loc[gaps.index[:3], "age"] = pd.NA
    with pytest.raises(PromptError, match="age"):
        false_prompts(gaps, "P5")
    table = false_prompts(gaps.drop(columns="sex"), "P5", missing="omit")
    counts = table["swapped"].value_counts().to_dict()
    assert counts == {"structure": 24, "view": 24, "phase": 24, "age": 15}
    assert (table["text"] != table["true_text"]).all()


def test_synthetic_cohorts_say_the_shape_in_p6(frames: pd.DataFrame) -> None:
    synthetic = frames.copy()
    synthetic.attrs = {"meta": {"kind": "synthetic"}}
    assert "shape" in set(false_prompts(synthetic, "P6")["swapped"])
    assert "quality" not in set(false_prompts(synthetic, "P6")["swapped"])
    with pytest.raises(PromptError, match="P7"):
        false_prompts(synthetic, "P7")


def test_nothing_to_swap(frames: pd.DataFrame) -> None:
    with pytest.raises(PromptError, match="P0 is the empty text"):
        false_prompts(frames, "P0")
    with pytest.raises(PromptError, match="variant 'random'"):
        false_prompts(frames, "P1", "random")


@pytest.mark.usefixtures("label_images")
def test_a_model_that_reads_the_structure_obeys_a_false_one(frames: pd.DataFrame) -> None:
    effects = word_effects(Reader(), frames, "P7", size=96).set_index("swapped")
    assert (effects["dice_true"] > 0.8).all()
    swapped = effects.loc["structure"]
    assert (swapped["dice_false"] < 0.1).all()
    assert (swapped["dice_named"] > 0.8).all()
    assert (swapped["agreement"] == 0).all()
    others = effects.drop(index="structure")
    assert (others["change"] == 0).all()
    assert (others["agreement"] == 1).all()
    assert (others["dice_named"] == others["dice_false"]).all()


@pytest.mark.usefixtures("label_images")
def test_a_model_that_reads_the_sex_is_caught(frames: pd.DataFrame) -> None:
    both = frames.copy()
    both["sex"] = np.where(both["view"] == "2CH", "M", "F")
    effects = word_effects(Reader(listens=True), both, "P5", size=96)
    sex = effects[effects["swapped"] == "sex"].set_index("true_value")
    assert (sex.loc["M", "dice_false"] == 0).all()
    assert (sex.loc["M", "change"] < -0.8).all()
    assert (sex.loc["F", "change"] > 0.8).all()
    assert (sex["agreement"] == 0).all()
    silent = effects[~effects["swapped"].isin(["sex", "structure"])]
    assert (silent["change"] == 0).all()


def test_scores_are_those_of_scoring(frames: pd.DataFrame, model: nn.Module) -> None:
    """`dice_true` against the way of notebook 05; `dice_named` and `agreement` against single calls."""
    few = frames.iloc[:3]
    effects = word_effects(model, few, "P2", batch_size=2).set_index([*MASK, "swapped"])
    logits = predict(model, make_triplets(few, "P2", model, variant="0"))
    for row, answers in zip(few.itertuples(), logits, strict=True):
        labels = load_labels(row)
        for (value, name), answer in zip(STRUCTURES.items(), answers, strict=True):
            found = effects.loc[(row.patient, row.view, row.phase, name, "structure")]
            expected = score(answer.sigmoid().numpy(), labels == value)["dice"]
            assert found["dice_true"] == pytest.approx(expected, abs=1e-4)
            assert found["change"] == pytest.approx(found["dice_false"] - found["dice_true"])
            # the prompt that names another structure is, at P2, that structure's own true prompt
            number = list(STRUCTURES.values()).index(found["false_value"])
            own = effects.loc[(row.patient, row.view, row.phase, found["false_value"], "structure")]
            assert found["dice_named"] == pytest.approx(own["dice_true"], abs=1e-4)
            masks = to_mask(torch.stack([answer, answers[number]]), 512).numpy()
            assert found["agreement"] == pytest.approx(score(masks[0], masks[1])["dice"], abs=1e-4)


def test_an_image_is_encoded_once(
    frames: pd.DataFrame, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda pixels: counted.append(len(pixels)) or encode(pixels))
    effects = word_effects(model, frames, "P5", batch_size=3, size=None)
    assert counted == [3, 3, 2]
    assert len(effects) == 8 * 3 * 5
    scores = effects[["dice_true", "dice_false", "agreement", "dice_named"]]
    assert ((scores >= 0) & (scores <= 1)).all(axis=None)


def test_the_order_of_images_and_gaps_do_not_mix_rows(frames: pd.DataFrame, model: nn.Module) -> None:
    gaps = frames.copy()
    gaps["age"] = gaps["age"].astype("Int64")
    gaps.loc[gaps.index[2:4], "age"] = pd.NA
    whole, turned = (
        word_effects(model, table, "P5", missing="omit", size=None).set_index([*MASK, "swapped"])
        for table in (gaps, gaps.iloc[::-1])
    )
    assert len(whole) == 8 * 3 * 5 - 2 * 3
    for column in ("dice_false", "agreement"):
        assert turned[column].loc[whole.index].to_numpy() == pytest.approx(whole[column].to_numpy(), abs=5e-3)


def test_the_text_blind_reference_has_no_words(frames: pd.DataFrame) -> None:
    with pytest.raises(ModelError, match="text-blind"):
        word_effects(ReferenceUNet.fresh(32, (8, 16)), frames, "P1")


def test_cris_answers_too(frames: pd.DataFrame, model: nn.Module) -> None:
    """Random weights of the other model, with CLIPSeg's tokenizer."""
    from echovlsm.models import cris
    from echovlsm.models.cris_config import CRISConfig

    config = CRISConfig(
        image_resolution=64,
        vision_layers=(1, 1, 1, 1),
        vision_width=8,
        embed_dim=64,
        vocab_size=len(model.tokenizer),
        text_width=64,
        text_heads=1,
        text_layers=1,
        fpn_in=(64, 128, 64),
        fpn_out=(32, 64, 64),
        vis_dim=64,
        decoder_layers=1,
        decoder_heads=4,
        decoder_ffn=96,
        image_size=64,
    )
    torch.manual_seed(0)
    effects = word_effects(cris.CRIS(config, model.tokenizer), frames.iloc[:2], "P5", size=None)
    assert len(effects) == 2 * 3 * 5
    assert effects[["dice_true", "dice_named", "agreement"]].notna().all(axis=None)

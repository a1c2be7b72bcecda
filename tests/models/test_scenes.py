"""Scenes and captions that the tiny models learn from."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest
import torch
import typer

from data.weights.make.models import (
    build_tiny_clipseg,
    pretrain,
    random_sentences,
    scene_batch,
    vocabulary_words,
)
from data.weights.make.scenes import HEART_WORDS, draw_scene
from tests.conftest import ROOT, WEIGHTS


def test_a_scene_depends_on_its_seed_alone() -> None:
    first, second, other = draw_scene((5, 1)), draw_scene((5, 1)), draw_scene((5, 2))
    assert np.array_equal(first.image, second.image)
    assert first.captions == second.captions
    assert not np.array_equal(first.image, other.image)


def test_captions_name_things_that_are_there_and_sometimes_not() -> None:
    scenes = [draw_scene((0, index)) for index in range(200)]
    filled = np.array([scene.masks.any(axis=(1, 2)) for scene in scenes])
    assert 0.8 < filled.mean() < 0.99
    assert all(len(scene.captions) == 3 and scene.masks.shape == (3, 96, 96) for scene in scenes)
    captions = [caption for scene in scenes for caption in scene.captions]
    assert all(re.search(r"[a-z]", caption) and "  " not in caption for caption in captions)


def test_a_bright_thing_is_where_its_mask_says() -> None:
    """On dark grounds, what a caption calls white is brighter than the rest of the image."""
    brighter = []
    for index in range(400):
        scene = draw_scene((1, index))
        for caption, mask in zip(scene.captions, scene.masks, strict=True):
            if "white" in caption and mask.sum() > 100:
                brighter.append(scene.image[:, mask].mean() > scene.image[:, ~mask].mean())
    assert len(brighter) > 20
    assert np.mean(brighter) > 0.9


def test_no_word_for_the_heart_is_ever_seen() -> None:
    """Zero-shot has to mean zero-shot."""
    tokenizer = build_tokenizer_of_weights()
    words = vocabulary_words(tokenizer)
    first, second = random_sentences(words, 500, np.random.default_rng(0))
    captions = scene_batch(0, 0, 200, 48)[1]
    seen = set(re.findall(r"[a-z]+", " ".join([*first, *second, *captions]).lower()))
    assert not seen & HEART_WORDS
    assert not {word for word in seen if word.startswith(("ventric", "myocard", "echocard"))}
    assert len(words) > 1000


def build_tokenizer_of_weights():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(WEIGHTS)


def test_pretraining_resumes_where_it_was_killed(tmp_path) -> None:
    """Stop after the checkpoint of step 2 of 4, go on, and end with the weights of an uninterrupted run."""
    from data.weights.make import models as module

    tokenizer = build_tokenizer_of_weights()
    options = {"steps": 4, "batch": 2, "rate": 1e-3, "seed": 0, "every": 1, "save_every": 2}
    whole = build_tiny_clipseg(tokenizer)
    pretrain(whole, tmp_path / "whole", **options)

    class KilledError(Exception):
        pass

    draw = module.scene_batch

    def dies_at_three(seed: int, step: int, batch: int, size: int):
        if step == 3:
            raise KilledError
        return draw(seed, step, batch, size)

    module.scene_batch = dies_at_three
    try:
        pretrain(build_tiny_clipseg(tokenizer), tmp_path / "parts", **options)
    except KilledError:
        pass
    finally:
        module.scene_batch = draw
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    resumed = build_tiny_clipseg(
        tokenizer, seed=1
    )  # other random weights: they must come from the checkpoint
    pretrain(resumed, tmp_path / "parts", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("name", ["clipseg-tiny", "cris-tiny", "sdm-tiny"])
def test_a_model_card_names_a_command_that_there_is(name: str) -> None:
    card = (ROOT / "data" / "weights" / name / "README.md").read_text()
    module, options = re.search(r"python -m (\S+) (.+)", card).groups()
    command = typer.Typer()
    command.command()(importlib.import_module(module).main)
    known = {option for one in typer.main.get_command(command).params for option in one.opts}
    assert set(re.findall(r"--\S+", options)) <= known
    assert options.endswith(f"--install data/weights/{name}")

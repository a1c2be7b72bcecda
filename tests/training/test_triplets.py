"""Triplets: resizing, drawing of variants, augmentation and held-out patients."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.plain import changed_by_monai
from echovlsm import STRUCTURES
from echovlsm.cohort.images import load_image, load_labels, resize_image, resize_labels
from echovlsm.prompts.templates import make_prompts
from echovlsm.training.augmentation import Change, augment, draw_change
from echovlsm.training.triplets import Triplets, hold_out


def tokenize(texts):
    """Each text's place in the list as its only token."""
    ids = torch.arange(len(texts))[:, None]
    return ids, torch.ones_like(ids)


def make(frames: pd.DataFrame, level: str = "P1", **options) -> Triplets:
    return Triplets(frames, make_prompts(frames, levels=(level,)), tokenize, 48, **options)


def test_an_item_is_a_image_with_three_prompts_and_their_masks(phantom_frames: pd.DataFrame) -> None:
    triplets = make(phantom_frames, variant="0")
    item = triplets[5]
    row = phantom_frames.iloc[5]
    labels = resize_labels(load_labels(row), 48)
    assert torch.equal(item["image"], resize_image(load_image(row), 48))
    for place, (value, name) in enumerate(STRUCTURES.items()):
        assert torch.equal(item["masks"][place].bool(), labels == value)
        assert name in triplets.texts[item["input_ids"][place].item()].lower()
    assert triplets.texts_of(5) == [triplets.texts[i] for i in item["input_ids"][:, 0]]


def test_prompts_with_metadata_are_those_of_their_own_image(phantom_frames: pd.DataFrame) -> None:
    triplets = make(phantom_frames, "P3", variant="1")
    for index, row in enumerate(phantom_frames.itertuples()):
        words = (
            {"2CH": "two-chamber", "4CH": "four-chamber"}[row.view],
            {"ED": "diastole", "ES": "systole"}[row.phase],
        )
        assert all(word in text for text in triplets.texts_of(index) for word in words)


def test_random_variants_depend_on_seed_and_epoch_alone(phantom_frames: pd.DataFrame) -> None:
    def drawn(seed: int, epoch: int) -> list[list[str]]:
        triplets = make(phantom_frames, seed=seed)
        triplets.epoch = epoch
        return [triplets.texts_of(index) for index in range(len(triplets))]

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2) != drawn(1, 3)
    assert drawn(1, 2) != drawn(2, 2)
    assert len({text for texts in drawn(1, 2) for text in texts}) == 6


def test_negatives_follow_the_structures_and_change_nothing_else(phantom_frames: pd.DataFrame) -> None:
    plain, more = (make(phantom_frames, seed=3, augment=True, negatives=count) for count in (0, 2))
    seen = set()
    for place in ((1, 0), (2, 0), (1, 5)):
        one, two = plain.__getitems__([place]), more.__getitems__([place])
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["masks"], two["masks"][:, :3])
        assert not two["masks"][:, 3:].any()
        assert one["input_ids"].shape[1] == 3
        texts = [[t.texts[number] for number in item["text"][0]] for t, item in ((plain, one), (more, two))]
        assert texts[0] == texts[1][:3]
        assert not set(texts[1][3:]) & set(plain.texts)
        seen |= set(texts[1][3:])
    assert len(seen) == 6  # drawn anew for each image and epoch


def test_labels_keep_their_values_and_place_when_resized() -> None:
    labels = np.zeros((100, 60), np.uint8)
    labels[:50, :30] = 3
    small = resize_labels(labels, 20)
    assert set(small.unique().tolist()) == {0, 3}
    assert small[:10, :10].eq(3).all()
    assert small.eq(3).float().mean() == pytest.approx(0.25)


def test_images_are_averaged_when_shrunk() -> None:
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))
    assert resize_image(stripes, 16).float().std() < 10


def test_augmentation_moves_image_and_masks_together(phantom_frames: pd.DataFrame) -> None:
    plain, moved = make(phantom_frames), make(phantom_frames, augment=True)
    moved.epoch = 1
    first, again = moved[0], moved[0]
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["masks"], plain[0]["masks"])
    moved.epoch = 2
    assert not torch.equal(first["image"], moved[0]["image"])
    inside, outside = [], []
    for index in range(
        len(moved)
    ):  # the cavity stays darker than the wall around it only if both moved alike
        item = moved[index]
        inside.append(item["image"][item["masks"][0].bool()].float().mean())
        outside.append(item["image"][item["masks"][1].bool()].float().mean())
    assert torch.stack(inside).mean() < torch.stack(outside).mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, p: (f.iloc[:0], p), "no images"),
        (lambda f, p: (f, pd.concat([p, p.assign(level="P2")])), "one level"),
        (lambda f, p: (f, p[p["patient"] != f["patient"].iloc[0]]), "none for"),
        (lambda f, p: (f, pd.concat([p, p])), "two rows"),
    ],
)
def test_bad_input_is_named(phantom_frames: pd.DataFrame, change, message: str) -> None:
    frames, prompts = change(phantom_frames, make_prompts(phantom_frames, levels=("P1",)))
    with pytest.raises(ValueError, match=message):
        Triplets(frames, prompts, tokenize, 48)


def test_an_unknown_variant_is_named(phantom_frames: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="variant: '7'"):
        make(phantom_frames, variant="7")


def test_held_out_patients_come_from_training_and_leave_the_rest_alone(phantom_frames: pd.DataFrame) -> None:
    changed = hold_out(phantom_frames, 0.34, seed=0)
    train = set(phantom_frames.loc[phantom_frames["split"] == "train", "patient"])
    chosen = set(changed.loc[changed["split"] == "val", "patient"])
    assert len(chosen) == 1
    assert chosen < train
    assert set(changed.loc[changed["split"] == "train", "patient"]) == train - chosen
    assert (changed["split"] == "unused").sum() == (phantom_frames["split"] == "val").sum()
    assert (changed["split"] == "test").equals(phantom_frames["split"] == "test")
    assert hold_out(phantom_frames, 0, seed=0) is phantom_frames
    with pytest.raises(ValueError, match="holdout"):
        hold_out(phantom_frames, 1.5, seed=0)


@pytest.mark.parametrize("size", [48, 63])
def test_a_batch_is_augmented_as_by_monai(phantom_frames: pd.DataFrame, size: int) -> None:
    rows = list(phantom_frames.itertuples())
    images = torch.stack([resize_image(load_image(row), size) for row in rows])
    labels = torch.stack([resize_labels(load_labels(row), size) for row in rows])
    changes = [draw_change(np.random.default_rng(number), size) for number in range(len(rows))]
    assert len({change.gamma for change in changes}) > 3
    parts = [changed_by_monai(*one) for one in zip(images, labels, changes, strict=True)]
    grey, found = augment(images, labels, changes)
    assert (grey.int() - torch.stack([image.as_tensor() for image, _ in parts]).int()).abs().max() <= 1
    assert (found == torch.stack([label.as_tensor() for _, label in parts])).float().mean() >= 0.999
    unchanged = augment(images, labels, [Change()] * len(rows))
    assert torch.equal(unchanged[0], images)
    assert torch.equal(unchanged[1], labels)


def test_changes_are_drawn_as_often_and_as_wide_as_said() -> None:
    changes = [draw_change(np.random.default_rng(seed), 100) for seed in range(2000)]
    for name, bound, middle, share in (
        ("rotation", 0.2, 0, 0.9),
        ("gamma", None, 1, 0.5),
        ("factor", 0.2, 1, 0.5),
    ):
        values = np.array([getattr(change, name) for change in changes])
        assert np.mean(values != middle) == pytest.approx(share, abs=0.03)
        if bound:
            assert 0.95 * bound < np.abs(values - middle).max() <= bound
    assert 5.7 < np.abs([change.shift for change in changes]).max() <= 6


def test_an_augmented_batch_is_made_of_plain_tensors_that_do_not_depend_on_the_batch(
    phantom_frames: pd.DataFrame,
) -> None:
    triplets = make(phantom_frames, augment=True)
    together = triplets.__getitems__([(2, 0), (1, 3), (2, 5)])
    assert {type(values) for values in together.values()} == {torch.Tensor}
    triplets.epoch = 2
    for place, index in ((0, 0), (2, 5)):
        for name, values in triplets[index].items():
            assert torch.equal(values, together[name][place]), name

"""What the entries work on: full-size models with random weights, a small phantom cohort, masks."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from echovlsm import models
from echovlsm.base import cache, paths
from echovlsm.models.clipseg import CLIPSeg
from echovlsm.models.cris import CRIS
from echovlsm.models.cris_config import CRISConfig
from echovlsm.training.triplets import Triplets, make_triplets

LEVEL = "P3"
"""Prompt level of the entries: structure, view and phase, so that a patient's images share no prompt."""


@dataclass(frozen=True)
class Settings:
    """How an entry runs.

    `quick`: tiny models and few repeats, for tests of the code; the times then mean nothing.
    `threads`: PyTorch's.
    """

    quick: bool = False
    threads: int = 2

    def repeats(self, count: int) -> int:
        """`count`, or one where it is quick."""
        return 1 if self.quick else count


@lru_cache(maxsize=1)
def _workshop() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="echovlsm-benchmarks-")


@contextlib.contextmanager
def own_cache(kept: bool = True) -> Iterator[None]:
    """Keep what is computed once apart from the project's; `kept` false turns the cache off."""
    before = os.environ.get(cache.FOLDER)
    os.environ[cache.FOLDER] = str(Path(_workshop().name) / "cache") if kept else ""
    try:
        yield
    finally:
        os.environ.pop(cache.FOLDER)
        if before is not None:
            os.environ[cache.FOLDER] = before


@lru_cache(maxsize=4)
def cohort(patients: int, size: int) -> pd.DataFrame:
    """Frames table of a phantom cohort in a temporary folder, four images a patient."""
    from echovlsm.cohort.read import read_cohort
    from echovlsm.phantom.cohort import write_phantom_cohort

    root = Path(_workshop().name) / f"phantom-{patients}-{size}"
    write_phantom_cohort(root, patients, seed=8, size=size, splits=(1, 0, 0), progress=False, workers=1)
    return read_cohort(root)


def clipseg(settings: Settings, encoders: str) -> CLIPSeg:
    """CLIPSeg with random weights at the configuration of CIDAS/clipseg-rd64-refined at 352 px; always alike.

    Only the end token differs: that of the tiny vocabulary which comes with the project. Quick: the tiny
    model.
    """
    tiny = models.load("clipseg", paths.resolve("data/weights/clipseg-tiny"), encoders)
    if settings.quick:
        return tiny
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    end = tiny.segmenter.config.text_config.eos_token_id
    sides = {"hidden_act": "quick_gelu", "num_hidden_layers": 12}
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 16}
    config = CLIPSegConfig(
        text_config={**sides, **text, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end},
        vision_config={**sides, **vision, "image_size": 224},
        projection_dim=512,
        reduce_dim=64,
        extract_layers=[3, 6, 9],
        conditional_layer=0,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=2048,
        use_complex_transposed_convolution=True,
    )
    torch.manual_seed(0)
    segmenter = CLIPSegForImageSegmentation(config)
    return CLIPSeg(segmenter, tiny.tokenizer, encoders=encoders, image_size=352)


def cris(settings: Settings, encoders: str = "unfrozen") -> CRIS:
    """CRIS with random weights at the study's configuration (RN50, 416 px), every path open; always the same.

    Quick: the tiny model.
    """
    tiny = models.load("cris", paths.resolve("data/weights/cris-tiny"), encoders)
    if settings.quick:
        return tiny
    torch.manual_seed(0)
    model = CRIS(CRISConfig(), tiny.tokenizer, encoders)
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(parameter, 0.2)  # zero at CLIP's random start, which closes the residual branch
    return model


def triplets(model: nn.Module, images: int, view: str = "") -> Triplets:
    """The first images of the phantom cohort with their prompts and masks, at the model's size.

    `view`: of that view only, two a patient, so that patients share prompts.
    """
    patients = -(-images // (2 if view else 4))
    frames = cohort(patients, 256 if model.image_size > 128 else 128)
    part = frames[frames["view"].eq(view) | (not view)].iloc[:images].reset_index(drop=True)
    part.attrs = frames.attrs
    return make_triplets(part, LEVEL, model, variant=0)


def batch_of(part: Triplets) -> dict[str, Tensor]:
    """All of a part as one batch, as the training's loader makes it."""
    return part.__getitems__(range(len(part)))


def one_by_one(model: nn.Module, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A batch as triplets: normalised pixels (1, 3, H, W), ids and mask (1, L), truth (1, H, W)."""
    rows = []
    for image, pixels in enumerate(model.normalise(batch["image"])):
        for place in range(batch["input_ids"].shape[1]):
            words = (batch[name][image, place][None] for name in ("input_ids", "attention_mask"))
            rows.append((pixels[None], *words, batch["masks"][image, place][None]))
    return rows


def outlines(count: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of masks bool (size, size): structures of the phantom, moved and thickened, and as they are."""
    from scipy import ndimage

    from echovlsm import STRUCTURES
    from echovlsm.cohort.images import load_labels

    rng = np.random.default_rng(4)
    frames = cohort(5, min(size, 256))
    found = []
    for number in range(count):
        labels = load_labels(frames.iloc[(number // len(STRUCTURES)) % len(frames)])
        value = list(STRUCTURES)[number % len(STRUCTURES)]
        truth = ndimage.zoom((labels == value).astype(np.uint8), np.divide(size, labels.shape), order=0) > 0
        moved = np.roll(truth, rng.integers(-size // 30, size // 30 + 1, 2), axis=(0, 1))
        found.append((ndimage.binary_dilation(moved, iterations=int(rng.integers(1, 4))), truth))
    return found


# -- how alike ------------------------------------------------------------------------------------------


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest value wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))


def assert_alike(found: Tensor, wanted: Tensor, what: str, tolerance: float) -> str:
    """How far apart two tensors are, in words; an AssertionError beyond the tolerance."""
    far = apart(found, wanted)
    assert far <= tolerance, f"{what}: {far:.1e} apart, more than {tolerance:.0e}"
    return f"{what} equal to {far:.0e}"


def gradients_apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """How far apart two sets of gradients are as one long vector, as a share of the length wanted.

    What is left of large terms that cancel, such as the gradients of keys' biases, is rounding, so that not
    each tensor can be held against its own length. (A test does so in double precision.)
    """
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())[:3]
    apart = (float((found[name] - value).norm()) for name, value in wanted.items())
    return math.hypot(*apart) / math.hypot(*(float(value.norm()) for value in wanted.values()))


def assert_same_gradients(
    found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-3
) -> str:
    """The same parameters have gradients, and these are equal; in words, how alike."""
    far = gradients_apart(found, wanted)
    worst = max(wanted, key=lambda name: float((found[name] - wanted[name]).norm()))
    assert far <= tolerance, f"gradients: {far:.1e} apart, more than {tolerance:.0e}, most of all {worst}"
    return f"gradients of {len(wanted)} tensors equal to {far:.0e}"

"""Triplets: an image, the words that name a structure, and the structure's mask; and the order they come in.

One item is one image with all of its structures, because the structures share the image's encoding. Images
and label maps are resized once and kept in memory as 8-bit arrays.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from echovlsm import STRUCTURES
from echovlsm.base import cache
from echovlsm.cohort import load_image, load_labels, resize_image, resize_labels
from echovlsm.prompts import other_sentences, prompts_for
from echovlsm.training.augmentation import augment, draw_change
from echovlsm.training.devices import fits, put

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]

POOL = 4096
"""Sentences about something else from which each item draws its own."""


class Triplets(Dataset):
    """Images of a frames table with the prompts and masks of their structures.

    Parameters
    ----------
    frames
        Frames table; every row needs a mask.
    prompts
        Prompts table (`echovlsm.prompts.make_prompts`) of ONE prompt level.
    tokenize
        The model's ``tokenize``.
    image_size
        Side in pixels to which images (area-averaged bilinear) and labels (nearest) are resized.
    variant
        Template variant to use, or ``random``: one of them, drawn anew for each image, structure and epoch
        as in the paper.
    seed
        Seed of that draw and of the augmentation; the draw depends on (seed, epoch, image) alone, so a
        resumed run sees what an uninterrupted one would have seen.
    augment
        Random affine and contrast changes of the training images. The paper trained without.
    negatives
        Sentences about something else (`echovlsm.prompts.other_sentences`) that each item has besides, with
        empty masks; they follow the structures and are drawn anew for each image and epoch, from a random
        stream of their own. The paper trained without.
    structures
        Label value to the structure's name in `prompts`; by default the three of CAMUS.

    Raises
    ------
    ValueError
        No images, several prompt levels, a structure without a prompt, or an unknown variant.
    """

    def __init__(
        self,
        frames: pd.DataFrame,
        prompts: pd.DataFrame,
        tokenize: Tokenize,
        image_size: int,
        *,
        variant: str | int = "random",
        seed: int = 0,
        augment: bool = False,
        negatives: int = 0,
        progress: bool = False,
        structures: Mapping[int, str] = STRUCTURES,
    ) -> None:
        if frames.empty:
            raise ValueError("frames: no images; check the cohort and the split")
        levels = prompts["level"].unique()
        if len(levels) != 1:
            raise ValueError(f"prompts: one level expected, found {', '.join(map(str, levels))}; select one")
        self.frames = frames.reset_index(drop=True)
        self.structures = tuple(structures.values())
        self.values = tuple(structures)
        self.seed, self.epoch, self.variant, self.augmented = seed, 0, variant, augment
        self.negatives = negatives
        self._choose_texts(prompts, tokenize)
        self._load(image_size, progress)

    def _choose_texts(self, prompts: pd.DataFrame, tokenize: Tokenize) -> None:
        variants = sorted(prompts["variant"].unique(), key=str)
        if self.variant != "random":
            known = {str(variant): variant for variant in variants}
            if str(self.variant) not in known:
                raise ValueError(f"variant: {self.variant!r} is not one of random, {', '.join(known)}")
            variants = [known[str(self.variant)]]
        table = prompts.set_index(["patient", "view", "phase", "structure", "variant"])["text"]
        if not table.index.is_unique:
            raise ValueError("prompts: two rows for one image, structure and variant")
        wanted = [
            (row.patient, row.view, row.phase, structure, variant)
            for row in self.frames.itertuples()
            for structure in self.structures
            for variant in variants
        ]
        missing = [key for key in wanted if key not in table.index] if len(table) < len(wanted) else []
        if missing:
            raise ValueError(f"prompts: none for {missing[0]} and {len(missing) - 1} others")
        codes, self.texts = pd.factorize(table.loc[wanted].to_numpy())
        self.choices = codes.reshape(len(self.frames), len(self.structures), len(variants))
        if self.negatives:
            others = other_sentences(self.texts, self.structures, POOL, self.seed)
            self.texts = np.concatenate([self.texts, others])
        self.input_ids, self.attention_mask = tokenize(list(self.texts))
        tokens = torch.cat([self.input_ids, self.attention_mask], dim=1)
        self.kinds = torch.unique(tokens, dim=0, return_inverse=True)[1].numpy()  # texts may share tokens

    def _load(self, size: int, progress: bool) -> None:
        def make() -> dict[str, np.ndarray]:
            count = len(self.frames)
            images = np.empty((count, size, size), dtype=np.uint8)
            labels = np.empty((count, size, size), dtype=np.uint8)
            rows = self.frames.itertuples()
            for index, row in enumerate(tqdm(rows, total=count, desc="images", disable=not progress)):
                images[index] = resize_image(load_image(row), size).numpy()
                labels[index] = resize_labels(load_labels(row), size).numpy()
            return {"images": images, "labels": labels}

        key = _files_key(self.frames)
        found = make() if key is None else cache.arrays("pictures", cache.key_of(key, size, "1"), make)
        # copied: a memory map is read-only, and images are small
        self.images, self.labels = (torch.from_numpy(np.array(found[n])) for n in ("images", "labels"))

    def texts_of(self, index: int) -> list[str]:
        """The prompts that image `index` gets in the epoch `epoch`, one a structure, then the negatives."""
        return [str(self.texts[text]) for text in self._draw(self.epoch, index)[0]]

    def _draw(self, epoch: int, index: int) -> tuple[np.ndarray, np.random.Generator]:
        rng = np.random.default_rng((self.seed, epoch, index))
        drawn = rng.integers(0, self.choices.shape[2], len(self.structures))
        texts = self.choices[index, np.arange(len(self.structures)), drawn]
        if self.negatives:
            others = np.random.default_rng((self.seed, epoch, index, 1)).integers(0, POOL, self.negatives)
            texts = np.concatenate([texts, len(self.texts) - POOL + others])
        return texts, rng

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device) -> Triplets:
        """The same with its tensors on `device`, where batches are then made; itself if they do not fit."""
        names = ("images", "labels", "input_ids", "attention_mask")
        if device.type == self.images.device.type or not fits(
            sum(getattr(self, name).nbytes for name in names), device
        ):
            return self
        moved = copy.copy(self)
        for name in names:
            setattr(moved, name, put(getattr(self, name), device))
        return moved

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One image, as a batch of one without its first axis, and without what belongs to a batch."""
        batch = self.__getitems__([index])
        return {name: values[0] for name, values in batch.items() if name not in ("distinct", "where")}

    def __getitems__(self, places: Sequence[int | tuple[int, int]]) -> dict[str, Tensor]:
        """A batch of B images; a `DataLoader` needs `collate_fn=whole_batch`.

        `places` are indices, or pairs of epoch and index. Index (B,), image uint8 (B, H, W), text (B, S):
        which of `texts`, input_ids and attention_mask (B, S, L), and masks float32 (B, S, H, W). S counts
        structures and negatives.
        """
        pairs = [place if isinstance(place, tuple) else (self.epoch, place) for place in places]
        drawn = [self._draw(*pair) for pair in pairs]
        device = self.images.device
        text = np.stack([texts for texts, _ in drawn])
        # what a model calls repeats: distinct (D,) and where (B S,)
        _, *repeats = np.unique(self.kinds[text], return_index=True, return_inverse=True)
        distinct, where = (put(torch.from_numpy(places.ravel()), device) for places in repeats)
        index = put(torch.tensor([place for _, place in pairs]), device)
        text = put(torch.from_numpy(text), device)
        images, labels = self.images[index], self.labels[index]
        if self.augmented:
            changes = [draw_change(rng, images.shape[-1]) for _, rng in drawn]
            images, labels = augment(images, labels, changes)
        masks = [labels == value for value in self.values]
        masks += [torch.zeros_like(masks[0])] * self.negatives
        return {
            "index": index,
            "image": images,
            "distinct": distinct,
            "where": where,
            "text": text,
            "input_ids": self.input_ids[text],
            "attention_mask": self.attention_mask[text],
            "masks": torch.stack(masks, dim=1).float(),
        }


class Batches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in a random order that depends on the seed alone, round by round.

    A round is an epoch, whose last batch may be smaller; or so many whole batches of one endless row of
    epochs, so that a step learns from as many images whatever their number. A resumed round repeats itself.

    Parameters
    ----------
    length
        Number of images.
    batch_size
        Images a batch.
    seed
        Of the order.
    steps
        Batches a round; 0: a round is an epoch.
    """

    # Accelerate asks for these two
    drop_last = False

    def __init__(self, length: int, batch_size: int, seed: int, steps: int = 0) -> None:
        self.length, self.batch_size, self.seed, self.steps = length, batch_size, seed, steps
        self.start_round(1)

    def start_round(self, number: int) -> None:
        """Choose the round, from 1 (not named `set_epoch`: Accelerate would call it with its own count)."""
        self.number = number

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        return torch.randperm(self.length, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        images = self.steps * self.batch_size or self.length
        places = range((self.number - 1) * images, self.number * images)
        orders = {epoch: self._order(epoch + 1) for epoch in {place // self.length for place in places}}
        row = [
            (place // self.length + 1, orders[place // self.length][place % self.length]) for place in places
        ]
        return iter([row[start : start + self.batch_size] for start in range(0, images, self.batch_size)])

    def __len__(self) -> int:
        return self.steps or math.ceil(self.length / self.batch_size)


def whole_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """For a `DataLoader`: `Triplets` gives whole batches, there is nothing to collate."""
    return batch


def _files_key(frames: pd.DataFrame) -> str | None:
    """Hash of the files of images and masks; None where other files have a part in them."""
    paths = [*frames["image"], *frames["labels"]]
    if any(pd.isna(path) or not str(path).endswith((".nii.gz", ".nii")) for path in paths):
        return None
    return cache.key_of_files(paths)


def make_triplets(
    frames: pd.DataFrame, level: str, model: object, *, missing: str = "error", **options: Any
) -> Triplets:
    """Triplets of `frames` with prompts of one level, prepared for a model.

    Shapes are read off the masks where the level names them.

    Parameters
    ----------
    frames, level, missing
        As for `echovlsm.prompts.prompts_for`.
    model
        Gives tokenizer and input size.
    options
        Of `Triplets`: `variant, seed, augment, negatives, progress`.
    """
    prompts = prompts_for(frames, level, missing)
    return Triplets(frames, prompts, model.tokenize, model.image_size, **options)


def hold_out(frames: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Frames whose validation split is a random `share` of the training patients; unchanged for 0.

    The cohort's own validation images get the split ``unused`` so that they can be scored untouched.
    """
    if share == 0:
        return frames
    if not 0 < share < 1:
        raise ValueError(f"holdout: {share} is not a share between 0 and 1")
    patients = np.sort(frames.loc[frames["split"] == "train", "patient"].unique())
    chosen = np.random.default_rng(seed).permutation(patients)[: max(1, round(share * len(patients)))]
    changed = frames.copy()
    changed["split"] = frames["split"].replace({"val": "unused"}).mask(frames["patient"].isin(chosen), "val")
    changed.attrs = frames.attrs
    return changed

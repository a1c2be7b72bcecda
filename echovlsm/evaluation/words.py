"""Do the words matter? One attribute of a prompt at a time is made false, and the mask's change is measured.

A model that reads only the structure's name will not move for any other word; one that has learned what else
the words say about the image will. `statistics.summary(effects, ("swapped",), "change")` gives means with
intervals by patient.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from echovlsm import PHASES, QUALITIES, STRUCTURES, VIEWS
from echovlsm.cohort import is_synthetic, load_image, load_labels, resize_image, resize_labels
from echovlsm.evaluation.scoring import PAPER_SIZE, to_mask
from echovlsm.prompts import attributes_of, make_prompts, shapes, templates

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

AGES: tuple[int, int] = (20, 90)
"""Youngest and oldest false age, years."""
AGE_APART: int = 20
"""A false age differs from the true one by at least so many years."""

_IMAGE = ["patient", "view", "phase"]
_NAMES = list(STRUCTURES.values())


def swappable(level: str, synthetic: bool = False) -> tuple[str, ...]:
    """What a prompt of this level can say falsely: `structure` and the level's attributes.

    Raises
    ------
    PromptError
        An unknown level, P0 (which says nothing), or P7 of a synthetic cohort.
    """
    attributes = attributes_of(level, synthetic)
    if level == "P0":
        raise templates.PromptError("P0 is the empty text: there is no word to swap; choose P1 or above")
    return ("structure", *attributes)


def false_prompts(
    frames: pd.DataFrame,
    level: str,
    variant: int | str = 0,
    seed: int = 0,
    missing: templates.Missing = "error",
) -> pd.DataFrame:
    """The true prompt and, for each attribute that it names, one in which only this is false.

    The other view, phase or sex is taken; another quality or shape is drawn, an age at least `AGE_APART`
    years away, and of each image's structures a permutation without fixed point. The draw depends on the
    seed and the image alone, not on which other images there are.

    Parameters
    ----------
    frames
        Frames table of one cohort.
    level
        P1 to P7.
    variant
        Template variant, a key of `prompts.templates.VARIANTS`.
    seed
        Of the draw.
    missing
        As in `make_prompts`; with `omit` an attribute that an image lacks is not swapped there.

    Returns
    -------
    DataFrame
        One row an image, structure and swapped attribute: `patient, view, phase, structure` (the true ones),
        `level`, `variant`, `swapped`, `true_value`, `false_value`, `true_text`, `text`.

    Raises
    ------
    PromptError
        As `make_prompts`; P0; an unknown variant.
    """
    prompts = _Prompts(frames.reset_index(drop=True), level, variant, seed, missing)
    return prompts.table()


def word_effects(
    model: nn.Module,
    frames: pd.DataFrame,
    level: str,
    missing: templates.Missing = "error",
    *,
    size: int | None = PAPER_SIZE,
    batch_size: int = 4,
) -> pd.DataFrame:
    """Ask a model true and false prompts (first variant) about the same images and compare its masks.

    Parameters
    ----------
    model
        A vision-language model; it is moved to the accelerator and put into eval mode.
    frames
        Frames table of one cohort; every row needs a mask.
    level
        P1 to P7, the level that the model was trained with.
    missing
        As in `false_prompts`.
    size
        Side in pixels at which masks are compared, as `scoring.score` does it; None: the model's own.
    batch_size
        Images at a time; each is encoded once for all of its prompts, up to 24.

    Returns
    -------
    DataFrame
        One row a mask and swapped attribute: the columns of `false_prompts` but for the texts; `dice_true`
        and `dice_false` (of the mask under the true and the false prompt with the truth), `change` (false -
        true), `agreement` (Dice between the two predictions) and `dice_named` (of the mask under the false
        prompt with the structure that it names: `dice_false` unless the structure is swapped). Two empty
        masks have a Dice of 1, as in `scoring`.

    Raises
    ------
    PromptError
        As `false_prompts`.
    ModelError
        The model cannot take these prompts (the text-blind reference).
    """
    import pandas as pd
    import torch
    from accelerate import Accelerator

    frames = frames.reset_index(drop=True)
    prompts = _Prompts(frames, level, 0, 0, missing)
    # images, the true prompt and the swaps, structures
    grid = np.stack([prompts.true, *(swap.texts for swap in prompts.swaps.values())], axis=1)
    numbers, texts = pd.factorize(grid.reshape(-1))
    numbers = torch.from_numpy(numbers.reshape(grid.shape))
    named = torch.from_numpy(prompts.permutations)
    place = list(prompts.swaps).index("structure")
    input_ids, attention_mask = model.tokenize(list(texts))
    device = Accelerator().device
    model = model.to(device).eval()
    found = []
    for start in range(0, len(frames), batch_size):
        batch = slice(start, start + batch_size)
        ids = numbers[batch].flatten(1)
        images, truth = _load(frames.iloc[batch], model.image_size, size)
        with torch.no_grad():
            pixels = model.normalise(images.to(device))
            logits = model(pixels, input_ids[ids].to(device), attention_mask[ids].to(device))
        masks = to_mask(logits.float().cpu(), size).unflatten(1, grid.shape[1:])
        found.append(_compare(masks, truth, named[batch], place))
    table = prompts.table()
    # the table has swaps first, and no row where an image lacks the attribute
    scores = np.concatenate(found).swapaxes(0, 1)[prompts.known()]
    return table.drop(columns=["true_text", "text"]).assign(
        dice_true=scores[:, 0],
        dice_false=scores[:, 1],
        change=scores[:, 1] - scores[:, 0],
        agreement=scores[:, 2],
        dice_named=scores[:, 3],
    )


def _load(rows: pd.DataFrame, image_size: int, size: int | None) -> tuple[Tensor, Tensor]:
    """Images uint8 (B, image_size, image_size) and true masks bool (B, S, side, side)."""
    import torch

    images = torch.stack([resize_image(load_image(row), image_size) for row in rows.itertuples()])
    labels = torch.stack([resize_labels(load_labels(row), size or image_size) for row in rows.itertuples()])
    return images, torch.stack([labels == value for value in STRUCTURES], dim=1)


def _compare(masks: Tensor, truth: Tensor, named: Tensor, structure_swap: int) -> np.ndarray:
    """Dice float (B, swaps, S, 4): true prompt, false prompt, agreement, structure that the prompt names.

    Takes masks bool (B, 1 + swaps, S, H, W), truth bool (B, S, H, W) and the structure that the prompt with
    the swapped structure names, int64 (B, S).
    """
    import torch
    from monai.metrics import compute_dice

    def dice(a: Tensor, b: Tensor) -> Tensor:
        """Dice over the last two axes of two masks that broadcast."""
        a, b = torch.broadcast_tensors(a, b)
        flat = (value.reshape(-1, 1, *value.shape[-2:]) for value in (a, b))
        return compute_dice(*flat, ignore_empty=False).view(a.shape[:-2])

    true, false = masks[:, :1], masks[:, 1:]
    right, wrong = dice(true, truth[:, None]), dice(false, truth[:, None])
    asked = wrong.clone()
    meant = truth[torch.arange(len(truth))[:, None], named]
    asked[:, structure_swap] = dice(false[:, structure_swap], meant)
    return torch.stack([right.expand_as(wrong), wrong, dice(true, false), asked], dim=-1).double().numpy()


class _Swap(NamedTuple):
    """One attribute made false: object arrays (images, structures), None where an image lacks it."""

    said: np.ndarray
    false: np.ndarray
    texts: np.ndarray


class _Prompts:
    """True prompts of a cohort's images, object (images, structures), and what is made false in them."""

    def __init__(
        self, frames: pd.DataFrame, level: str, variant: int | str, seed: int, missing: templates.Missing
    ) -> None:
        self.frames, self.level, self.missing = frames, level, missing
        self.synthetic = is_synthetic(frames)
        names = swappable(level, self.synthetic)
        numbers = {str(number): number for number in templates.VARIANTS}
        if str(variant) not in numbers:
            raise templates.PromptError(f"unknown template variant {variant!r}: one of {', '.join(numbers)}")
        self.variant = numbers[str(variant)]
        self.keys = _keys(frames)
        self.draws = [_Draw(seed, key) for key in self.keys]
        self.permutations = np.stack([draw.permutation for draw in self.draws])
        self.shapes: dict[tuple[str, ...], str] = {}
        if "shape" in names:
            table = shapes.name_shapes(frames, missing=missing, progress=False).dropna(subset=["shape"])
            self.shapes = {tuple(row[:4]): row[4] for row in table.itertuples(index=False, name=None)}
        self.true = self._write(frames, self.shapes)
        own = {"structure": self._swap_structure, "shape": self._swap_shape}
        self.swaps = {name: own[name]() if name in own else self._swap_column(name) for name in names}

    def known(self) -> np.ndarray:
        """Whether an image has what a swap makes false, bool (swaps, images, structures)."""
        return np.stack([np.not_equal(swap.said, None) for swap in self.swaps.values()])

    def table(self) -> pd.DataFrame:
        """What `false_prompts` returns."""
        import pandas as pd

        parts = [
            self.frames[_IMAGE]
            .loc[self.frames.index.repeat(len(_NAMES))]
            .reset_index(drop=True)
            .assign(
                structure=_NAMES * len(self.frames),
                level=self.level,
                variant=self.variant,
                swapped=name,
                true_value=pd.Series(swap.said.reshape(-1), dtype=object),
                false_value=pd.Series(swap.false.reshape(-1), dtype=object),
                true_text=self.true.reshape(-1),
                text=swap.texts.reshape(-1),
            )
            for name, swap in self.swaps.items()
        ]
        table = pd.concat(parts, ignore_index=True)[self.known().reshape(-1)].reset_index(drop=True)
        table.attrs = dict(self.frames.attrs)
        return table

    def _write(self, frames: pd.DataFrame, said: Mapping[tuple[str, ...], str | None]) -> np.ndarray:
        """The prompts of `frames`, which has one row for each of our images, in our order."""
        table = make_prompts(frames, said, self.missing, self.synthetic, (self.level,))
        chosen = table.loc[table["variant"] == self.variant, "text"]
        return chosen.to_numpy(dtype=object).reshape(len(frames), len(_NAMES))

    def _swap_structure(self) -> _Swap:
        other = self.permutations
        # the structure asked for takes the shape of the one that is meant: no second clause may differ
        borrowed = {
            (*key, _NAMES[target]): self.shapes.get((*key, _NAMES[source]))
            for key, row in zip(self.keys, other, strict=True)
            for source, target in enumerate(row)
        }
        names = np.array(_NAMES, dtype=object)
        texts = np.take_along_axis(self._write(self.frames, borrowed), other, axis=1)
        return _Swap(np.broadcast_to(names, other.shape), names[other], texts)

    def _swap_shape(self) -> _Swap:
        said = [[self.shapes.get((*key, name)) for name in _NAMES] for key in self.keys]
        false = [
            [draw.shape(value, number) for number, value in enumerate(row)]
            for draw, row in zip(self.draws, said, strict=True)
        ]
        changed = {
            (*key, name): value
            for key, row in zip(self.keys, false, strict=True)
            for name, value in zip(_NAMES, row, strict=True)
        }
        texts = self._write(self.frames, changed)
        return _Swap(np.array(said, dtype=object), np.array(false, dtype=object), texts)

    def _swap_column(self, name: str) -> _Swap:
        import pandas as pd

        column = (
            self.frames[name].astype(object) if name in self.frames.columns else [None] * len(self.frames)
        )
        said = [None if pd.isna(value) else value for value in column]
        false = [draw.value(name, value) for draw, value in zip(self.draws, said, strict=True)]
        frames = self.frames.assign(**{name: pd.Series(false, dtype=object)})
        # with its view or phase an image's key changes, but not what shape its structures have
        moved = dict(zip(self.keys, _keys(frames), strict=True))
        texts = self._write(frames, {(*moved[key[:3]], key[3]): shape for key, shape in self.shapes.items()})
        repeated = (
            np.repeat(np.array(values, dtype=object)[:, None], len(_NAMES), axis=1)
            for values in (said, false)
        )
        return _Swap(*repeated, texts)


class _Draw:
    """The false values of one image, which depend on the seed and the image alone."""

    def __init__(self, seed: int, key: tuple[Any, ...]) -> None:
        rng = np.random.default_rng([seed, zlib.crc32(" ".join(map(str, key)).encode())])
        count = len(STRUCTURES)
        self.permutation = (np.arange(count) + rng.integers(1, count)) % count
        self._age, self._word, *self._shapes = rng.random(2 + count)

    def value(self, name: str, true: Any) -> Any:
        """A false view, phase, sex, age or quality; None where the true one is missing."""
        if true is None:
            return None
        if name == "age":
            ages = [age for age in range(AGES[0], AGES[1] + 1) if abs(age - true) >= AGE_APART]
            return _pick(ages, self._age)
        known = {"view": VIEWS, "phase": PHASES, "sex": ("F", "M"), "quality": QUALITIES}[name]
        return _pick([word for word in known if word != true], self._word)

    def shape(self, true: str | None, number: int) -> str | None:
        """A false shape for the structure of this number."""
        others = [shape for shape in shapes.SHAPES if shape != true]
        return None if true is None else _pick(others, self._shapes[number])


def _pick(values: Sequence[Any], drawn: float) -> Any:
    return values[int(drawn * len(values))]


def _keys(frames: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(frames[_IMAGE].itertuples(index=False, name=None))

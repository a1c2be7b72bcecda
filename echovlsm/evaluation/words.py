"""Do the words matter? One attribute of a prompt at a time is made false, and the mask's change is measured.

`false_prompts` writes the prompts, through `echovlsm.prompts.make_prompts` with changed metadata, so that
they stay the authors' strings. `word_effects` asks a trained model both the true and the false prompts about
the same encoded picture. A model that reads only the structure's name will not move for any other word; one
that has learned what else the words say about the picture will.

`statistics.summary(effects, ("swapped",), "change")` gives means with intervals by patient.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from echovlsm import PHASES, QUALITIES, STRUCTURES, VIEWS
from echovlsm.cohort import is_synthetic, load_image, load_labels, resize_image, resize_labels
from echovlsm.evaluation.scoring import PAPER_SIZE, to_mask
from echovlsm.prompts import SHAPES, Missing, attributes_of, make_prompts, name_shapes, templates

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    Shapes = pd.DataFrame | Mapping[tuple[str, str, str, str], str] | None

AGES: tuple[int, int] = (20, 90)
"""Youngest and oldest false age, years."""
AGE_APART: int = 20
"""A false age differs from the true one by at least so many years."""

_PICTURE = ["patient", "view", "phase"]


def swappable(level: str, synthetic: bool = False) -> tuple[str, ...]:
    """What a prompt of this level says and can say falsely: `structure` and the level's attributes.

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
    missing: Missing = "error",
    shapes: Shapes = None,
) -> pd.DataFrame:
    """The true prompt and, for each attribute that it names, one in which only this is false.

    The other view, phase or sex is taken; another quality or shape is drawn, an age at least `AGE_APART`
    years away, and of each picture's structures a permutation without fixed point. The draw depends on the
    seed and the picture alone, not on which other pictures there are.

    Parameters
    ----------
    frames
        Frames table of one cohort.
    level
        P1 to P7.
    variant
        Template variant, a key of `prompts.VARIANTS`.
    seed
        Seed of the draw.
    missing
        As in `make_prompts`; with `omit` an attribute that a picture lacks is not swapped there.
    shapes
        As in `make_prompts`; None reads them off the masks where the level names them.

    Returns
    -------
    DataFrame
        One row a picture, structure and swapped attribute: `patient, view, phase, structure` (the true ones),
        `level`, `variant`, `swapped`, `true_value`, `false_value`, `true_text`, `text`.

    Raises
    ------
    PromptError
        As `make_prompts`; P0; an unknown variant.
    """
    import pandas as pd

    synthetic = is_synthetic(frames)
    names = swappable(level, synthetic)
    frames = frames.reset_index(drop=True)
    write = _Writer(frames, level, _variant(variant), seed, missing, synthetic, shapes)
    true = write.texts(frames, write.shapes)
    parts = []
    for name in names:
        said, false, text = write.swap(name)
        part = frames[_PICTURE].loc[frames.index.repeat(len(STRUCTURES))].reset_index(drop=True)
        parts.append(
            part.assign(
                structure=list(STRUCTURES.values()) * len(frames),
                level=level,
                variant=write.variant,
                swapped=name,
                true_value=pd.Series(said.reshape(-1), dtype=object),
                false_value=pd.Series(false.reshape(-1), dtype=object),
                true_text=true.reshape(-1),
                text=text.reshape(-1),
            ).dropna(subset=["true_value"])
        )
    table = pd.concat(parts, ignore_index=True)
    table.attrs = dict(frames.attrs)
    return table


def word_effects(
    model: nn.Module,
    frames: pd.DataFrame,
    level: str,
    variant: int | str = 0,
    seed: int = 0,
    missing: Missing = "error",
    shapes: Shapes = None,
    *,
    size: int | None = PAPER_SIZE,
    threshold: float = 0.5,
    batch_size: int = 4,
    progress: bool = False,
) -> pd.DataFrame:
    """Ask a model true and false prompts about the same pictures and compare its masks.

    Parameters
    ----------
    model
        A vision-language model; it is moved to the accelerator and put into eval mode.
    frames
        Frames table of one cohort; every row needs a mask.
    level
        P1 to P7, the level that the model was trained with.
    variant, seed, missing, shapes
        As in `false_prompts`.
    size
        Side in pixels at which masks are compared, as `scoring.score` does it; None: the model's own.
    threshold
        Probability from which a pixel belongs to the mask.
    batch_size, progress
        Pictures at a time (each is encoded once for all of its prompts, up to 24); a progress bar.

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
    from tqdm import tqdm

    frames = frames.reset_index(drop=True)
    prompts = false_prompts(frames, level, variant, seed, missing, shapes)
    names = list(dict.fromkeys(prompts["swapped"]))
    numbers = {name: number for number, name in enumerate(STRUCTURES.values())}
    place = pd.MultiIndex.from_frame(frames[_PICTURE])
    picture = place.get_indexer(pd.MultiIndex.from_frame(prompts[_PICTURE]))
    structure = prompts["structure"].map(numbers).to_numpy()
    swap = prompts["swapped"].map({name: number for number, name in enumerate(names)}).to_numpy()
    asked, codes = _ask(prompts, picture, swap, structure, (len(frames), len(names), len(numbers)))
    of_structure = (prompts["swapped"] == "structure").to_numpy()
    named = np.empty((len(frames), len(numbers)), dtype=np.int64)
    named[picture[of_structure], structure[of_structure]] = prompts.loc[of_structure, "false_value"].map(
        numbers
    )

    input_ids, attention_mask = model.tokenize(list(asked))
    device = Accelerator().device
    model = model.to(device).eval()
    found = np.empty((*codes[:, 1:].shape, 4))
    starts = range(0, len(frames), batch_size)
    for start in tqdm(starts, desc="swapping words", unit="batch", disable=not progress):
        batch = slice(start, start + batch_size)
        ids = torch.from_numpy(codes[batch]).flatten(1)  # pictures, prompts
        images, truth = _load(frames.iloc[batch], model.image_size, size)
        with torch.no_grad():
            pixels = model.normalise(images.to(device))
            logits = model(pixels, input_ids[ids].to(device), attention_mask[ids].to(device))
        masks = to_mask(logits.float().cpu(), size, threshold).unflatten(1, codes.shape[1:])
        found[batch] = _compare(masks, truth, torch.from_numpy(named[batch]), names.index("structure"))
    scores = found[picture, swap, structure]
    return prompts.drop(columns=["true_text", "text"]).assign(
        dice_true=scores[:, 0],
        dice_false=scores[:, 1],
        change=scores[:, 1] - scores[:, 0],
        agreement=scores[:, 2],
        dice_named=scores[:, 3],
    )


def _ask(
    prompts: pd.DataFrame,
    picture: np.ndarray,
    swap: np.ndarray,
    structure: np.ndarray,
    shape: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct texts, and their numbers int64 (pictures, 1 + swaps, structures): first the true prompt.

    Where a picture lacks the attribute, the true prompt stands in; its row is left out of the result.
    """
    import pandas as pd

    pictures, swaps, structures = shape
    grid = np.empty((pictures, 1 + swaps, structures), dtype=object)
    grid[picture, :, structure] = prompts["true_text"].to_numpy(dtype=object)[:, None]
    grid[picture, 1 + swap, structure] = prompts["text"]
    codes, texts = pd.factorize(grid.reshape(-1))
    return texts, codes.reshape(grid.shape)


def _load(rows: pd.DataFrame, image_size: int, size: int | None) -> tuple[Tensor, Tensor]:
    """Pictures uint8 (B, image_size, image_size) and true masks bool (B, S, side, side)."""
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


class _Writer:
    """Writes prompts of a cohort's pictures, true or with one attribute swapped.

    Values and texts come as object arrays (pictures, structures); the value is None where it is missing.
    """

    def __init__(
        self,
        frames: pd.DataFrame,
        level: str,
        variant: int,
        seed: int,
        missing: Missing,
        synthetic: bool,
        shapes: Shapes,
    ) -> None:
        self.frames, self.level, self.variant = frames, level, variant
        self.missing, self.synthetic = missing, synthetic
        self.structures = list(STRUCTURES.values())
        self.keys = _keys(frames)
        self.draws = [_Draw(seed, key) for key in self.keys]
        says_shape = "shape" in attributes_of(level, synthetic)
        self.shapes = _shape_lookup(frames, shapes, missing) if says_shape else {}

    def texts(self, frames: pd.DataFrame, shapes: Mapping[tuple[str, str, str, str], str]) -> np.ndarray:
        """The prompts of `frames`, which has one row for each of our pictures, in our order."""
        table = make_prompts(frames, shapes, self.missing, self.synthetic, (self.level,))
        chosen = table.loc[table["variant"] == self.variant, "text"]
        return chosen.to_numpy(dtype=object).reshape(len(frames), len(self.structures))

    def swap(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True values, false values and texts that say these."""
        if name == "structure":
            return self._swap_structure()
        return self._swap_shape() if name == "shape" else self._swap_column(name)

    def _swap_structure(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        other = np.stack([draw.permutation for draw in self.draws])
        # the structure asked for takes the shape of the one that is meant: no second clause may differ
        borrowed = {
            (*key, self.structures[target]): self.shapes.get((*key, self.structures[source]))
            for key, row in zip(self.keys, other, strict=True)
            for source, target in enumerate(row)
        }
        names = np.array(self.structures, dtype=object)
        texts = np.take_along_axis(self.texts(self.frames, borrowed), other, axis=1)
        return np.broadcast_to(names, other.shape), names[other], texts

    def _swap_shape(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        true = [[self.shapes.get((*key, name)) for name in self.structures] for key in self.keys]
        false = [
            [draw.shape(value, number) for number, value in enumerate(row)]
            for draw, row in zip(self.draws, true, strict=True)
        ]
        changed = {
            (*key, name): value
            for key, row in zip(self.keys, false, strict=True)
            for name, value in zip(self.structures, row, strict=True)
        }
        return np.array(true, dtype=object), np.array(false, dtype=object), self.texts(self.frames, changed)

    def _swap_column(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import pandas as pd

        empty = pd.Series([None] * len(self.frames), dtype=object)
        column = self.frames[name].astype(object) if name in self.frames.columns else empty
        true = [None if pd.isna(value) else value for value in column]
        false = [draw.value(name, value) for draw, value in zip(self.draws, true, strict=True)]
        frames = self.frames.assign(**{name: pd.Series(false, dtype=object)})
        # with its view or phase a picture's key changes, but not what shape its structures have
        moved = dict(zip(self.keys, _keys(frames), strict=True))
        texts = self.texts(frames, {(*moved[key[:3]], key[3]): shape for key, shape in self.shapes.items()})
        repeated = (
            np.repeat(np.array(values, dtype=object)[:, None], len(self.structures), axis=1)
            for values in (true, false)
        )
        return (*repeated, texts)


class _Draw:
    """The false values of one picture, which depend on the seed and the picture alone."""

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
        if true not in known:
            raise templates.PromptError(f"{name} {true!r} is unknown: one of {', '.join(known)}")
        return _pick([word for word in known if word != true], self._word)

    def shape(self, true: str | None, number: int) -> str | None:
        """A false shape for the structure of this number."""
        others = [shape for shape in SHAPES if shape != true]
        return None if true is None else _pick(others, self._shapes[number])


def _pick(values: Sequence[Any], drawn: float) -> Any:
    return values[int(drawn * len(values))]


def _keys(frames: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(frames[_PICTURE].itertuples(index=False, name=None))


def _variant(variant: int | str) -> int:
    known = {str(number): number for number in templates.VARIANTS}
    if str(variant) not in known:
        raise templates.PromptError(f"unknown template variant {variant!r}: one of {', '.join(known)}")
    return known[str(variant)]


def _shape_lookup(
    frames: pd.DataFrame, shapes: Shapes, missing: Missing
) -> dict[tuple[str, str, str, str], str]:
    """Shape of each structure of the pictures in `frames`; structures without one are left out."""
    import pandas as pd

    if shapes is None:
        shapes = name_shapes(frames, missing=missing, progress=False)
    if isinstance(shapes, pd.DataFrame):
        columns = shapes[[*_PICTURE, "structure", "shape"]].itertuples(index=False, name=None)
        shapes = {tuple(row[:4]): row[4] for row in columns}
    pictures = set(_keys(frames))
    return {key: value for key, value in shapes.items() if key[:3] in pictures and not pd.isna(value)}

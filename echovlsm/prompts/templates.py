"""Prompts: what an image's metadata says about a structure, in the words of the paper's authors.

Source: Adhikari et al., "Synthetic Boost", ASMUS 2023, section 2.2 (levels P0-P7), and the prompt files of
their MIT-licensed repository, reproduced to the letter, with `a eighteen-year-old male` and `end of the
diastole cycle`.

Each level adds one attribute: P0 nothing (the empty text), P1 structure, P2 + view, P3 + phase, P4 + sex,
P5 + age, P6 + image quality, P7 + shape. A synthetic cohort has no image quality, so that its P6 is
P5 + shape and it has no P7.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from echovlsm import PHASES, QUALITIES, STRUCTURES, VIEWS
from echovlsm.cohort import is_synthetic

if TYPE_CHECKING:
    import pandas as pd

    Shapes = pd.DataFrame | Mapping[tuple[str, str, str, str], str]

LEVELS: tuple[str, ...] = ("P0", "P1", "P2", "P3", "P4", "P5", "P6", "P7")
"""The prompt levels, from the empty text to all seven attributes."""

VARIANTS: dict[int, str] = {0: "of the heart", 1: "in the cardiac ultrasound"}
"""Template variant to the words that set it apart; the first two are the authors'.

Another wording is one more line here: its prompts are made, and runs may draw or ask for it.
"""

Missing = Literal["error", "omit"]

_CLAUSES = ("view", "phase", "sex", "age", "quality", "shape")
_NEEDS = {level: _CLAUSES[: max(0, i - 1)] for i, level in enumerate(LEVELS)}
_NEEDS_SYNTHETIC = _NEEDS | {"P6": ("view", "phase", "sex", "age", "shape")}
_VIEW_WORDS = dict(zip(VIEWS, ("two-chamber", "four-chamber"), strict=True))
_PHASE_WORDS = dict(zip(PHASES, ("diastole", "systole"), strict=True))
_SEX_WORDS = {"F": "female", "M": "male"}
_MAX_AGE = 130
_KEY = ["patient", "view", "phase"]


class PromptError(ValueError):
    """An attribute which a prompt needs is missing or malformed."""


def levels_of(synthetic: bool = False) -> tuple[str, ...]:
    """The levels that a cohort has: P0-P7, or P0-P6 where it is synthetic."""
    return LEVELS[:-1] if synthetic else LEVELS


def level_for(level: str, synthetic: bool) -> str:
    """The level that stands for `level` in a cohort: a synthetic one has P6 where others have P7."""
    return levels_of(True)[-1] if synthetic and level == LEVELS[-1] else level


def attributes_of(level: str, synthetic: bool = False) -> tuple[str, ...]:
    """What a level says besides the structure; PromptError where a cohort has no such level."""
    if level not in LEVELS:
        raise PromptError(f"unknown prompt level {level!r}: one of {', '.join(LEVELS)}")
    if level not in levels_of(synthetic):
        raise PromptError(
            f"a synthetic cohort has no {level} (it has no image quality, so that its P6 is P5 + shape): "
            f"choose from {', '.join(levels_of(True))}"
        )
    return (_NEEDS_SYNTHETIC if synthetic else _NEEDS)[level]


@lru_cache(maxsize=1024)
def age_in_words(age: int | float) -> str:
    """An age in whole years, 0 to 130, in words (56 -> `fifty-six`); PromptError for any other."""
    from num2words import num2words

    try:
        years = int(age)
    except (TypeError, ValueError, OverflowError):
        years = -1
    if years != age or not 0 <= years <= _MAX_AGE:
        raise PromptError(f"age {age!r} is not a whole number of years from 0 to {_MAX_AGE}")
    return num2words(years)


def make_prompt(
    structure: str,
    level: str,
    variant: int,
    *,
    view: str | None = None,
    phase: str | None = None,
    sex: str | None = None,
    age: float | None = None,
    quality: str | None = None,
    shape: str | None = None,
    missing: Missing = "error",
    synthetic: bool = False,
) -> str:
    """One prompt, to the letter as the paper's authors write it: the only place of the templates.

    Parameters
    ----------
    structure
        One of the names in `echovlsm.STRUCTURES`.
    level
        P0-P7.
    variant
        A key of `VARIANTS`; P0 is the empty text in all.
    view, phase, sex, age, quality
        As in the frames table.
    shape
        In lower-case letters; the authors' texts have `triangular` and `rectangular` besides the five names.
    missing
        `error` raises where an attribute that the level needs is None or NA, `omit` drops its clause.
    synthetic
        Whether the prompt is for a synthetic cohort.

    Raises
    ------
    PromptError
        Something unknown, missing or malformed.
    """
    _check_missing(missing)
    values = {"view": view, "phase": phase, "sex": sex, "age": age, "quality": quality, "shape": shape}
    present: dict[str, Any] = {}
    for name in attributes_of(level, synthetic):
        if not _is_na(values[name]):
            present[name] = values[name]
        elif missing == "error":
            raise PromptError(
                f"{level} needs {name}, which is missing: give {name}=..., choose a level without it, "
                f"or drop its clause with missing='omit'"
            )
    if structure not in STRUCTURES.values():
        raise PromptError(f"unknown structure {structure!r}: one of {', '.join(STRUCTURES.values())}")
    if variant not in VARIANTS:
        raise PromptError(
            f"unknown template variant {variant!r}: {', '.join(f'{k} ({v})' for k, v in VARIANTS.items())}"
        )
    if level == "P0":
        return ""
    text = structure.capitalize()
    if "shape" in present:
        if not re.fullmatch(r"[a-z]+(?:[ -][a-z]+)*", str(present["shape"])):
            raise PromptError(f"shape {present['shape']!r} is not a name in lower-case letters")
        text += f" of {present['shape']} shape"
    if "view" in present:
        text += f" in {_word('view', present['view'], _VIEW_WORDS)} view"
    text += f" {VARIANTS[variant]}"
    if "phase" in present:
        text += f" at end of the {_word('phase', present['phase'], _PHASE_WORDS)} cycle"
    if "sex" in present or "age" in present:
        text += " of a"
        if "age" in present:
            text += f" {age_in_words(present['age'])}-year-old"
        if "sex" in present:
            text += f" {_word('sex', present['sex'], _SEX_WORDS)}"
    if "quality" in present:
        text += f" with {_word('quality', present['quality'], {q: q for q in QUALITIES})} image quality"
    return text + "."


def make_prompts(
    frames: pd.DataFrame,
    shapes: Shapes | None = None,
    missing: Missing = "error",
    synthetic: bool | None = None,
    levels: Sequence[str] = LEVELS,
) -> pd.DataFrame:
    """Every prompt of every structure in every image of one cohort.

    Parameters
    ----------
    frames
        Frames table; where it has no column `sex`, `age` or `quality`, that is missing everywhere.
    shapes
        The shape of each structure, for the levels that say it: the table of `name_shapes`, or a mapping from
        (patient, view, phase, structure).
    missing
        `error` raises at the first attribute that a level needs and an image lacks; `omit` drops the clause.
    synthetic
        Whether the cohort is synthetic; None asks `cohort.is_synthetic`.
    levels
        Which levels to make; P7 has no rows in a synthetic cohort.

    Returns
    -------
    DataFrame
        `patient, view, phase, structure, level, variant, text`, one row per image, structure, level and
        variant, in this order, with the `attrs` of `frames`.

    Raises
    ------
    PromptError
        An attribute missing or malformed, named with its image; an unknown level; two rows of one image.
    """
    import pandas as pd

    _check_missing(missing)
    if synthetic is None:
        synthetic = is_synthetic(frames)
    wanted = _wanted_levels(levels, synthetic)
    needed = {name for level in wanted for name in attributes_of(level, synthetic)}
    absent = [name for name in _KEY if name not in frames.columns]
    if absent:
        raise PromptError(
            f"the frames table has no column {', '.join(absent)}: read it with cohort.read_cohort"
        )
    twice = frames[frames.duplicated(_KEY)]
    if len(twice):
        raise PromptError(
            f"{_image_name(twice.iloc[0])} occurs twice in the frames table: "
            "make the prompts of one cohort at a time"
        )
    shape_of = _shape_lookup(shapes) if "shape" in needed else {}
    if missing == "error":
        _check_attributes(frames, needed, shape_of, wanted, synthetic)
    names = ("view", "phase", "sex", "age", "quality")
    columns = [frames[name] if name in frames.columns else [None] * len(frames) for name in names]
    rows: list[tuple[Any, ...]] = []
    for patient, *values in zip(frames["patient"], *columns, strict=True):
        known = dict(zip(names, values, strict=True))
        place = (patient, known["view"], known["phase"])
        for structure, level, variant in itertools.product(STRUCTURES.values(), wanted, VARIANTS):
            known["shape"] = shape_of.get((*place, structure))
            try:
                text = make_prompt(structure, level, variant, **known, missing=missing, synthetic=synthetic)
            except PromptError as error:
                raise PromptError(f"{' '.join(map(str, place))}: {error}") from error
            rows.append((*place, structure, level, variant, text))
    table = pd.DataFrame(rows, columns=[*_KEY, "structure", "level", "variant", "text"])
    table["variant"] = table["variant"].astype("int64")
    table.attrs = dict(frames.attrs)
    return table


def _check_missing(missing: str) -> None:
    if missing not in ("error", "omit"):
        raise PromptError(f"missing={missing!r} is unknown: 'error' or 'omit'")


def _is_na(value: Any) -> bool:
    # NaN and NaT are the values unlike themselves; pandas.NA refuses to be compared
    if value is None or isinstance(value, str):
        return not value
    try:
        return bool(value != value)
    except TypeError:
        return True


def _word(name: str, value: Any, words: Mapping[str, str]) -> str:
    if value not in words:
        raise PromptError(f"{name} {value!r} is unknown: one of {', '.join(words)}")
    return words[value]


def _wanted_levels(levels: Sequence[str], synthetic: bool) -> tuple[str, ...]:
    levels = (levels,) if isinstance(levels, str) else levels
    for level in levels:
        attributes_of(level)  # raises for an unknown one
    wanted = tuple(level for level in dict.fromkeys(levels) if level in levels_of(synthetic))
    if levels and not wanted:
        attributes_of(levels[0], synthetic)  # raises: there is no P7
    return wanted


def _shape_lookup(shapes: Shapes | None) -> Mapping[tuple[str, str, str, str], str]:
    if shapes is None or isinstance(shapes, Mapping):
        return shapes or {}
    columns = [*_KEY, "structure", "shape"]
    absent = [name for name in columns if name not in shapes.columns]
    if absent:
        raise PromptError(
            f"the shapes table has no column {', '.join(absent)}: make it with shapes.name_shapes"
        )
    twice = shapes[shapes.duplicated(columns[:4])]
    if len(twice):
        raise PromptError(
            f"{_image_name(twice.iloc[0])} {twice.iloc[0]['structure']} occurs twice in the shapes table"
        )
    return {tuple(row[:4]): row[4] for row in shapes[columns].itertuples(index=False, name=None)}


def _image_name(row: Any) -> str:
    return f"{row['patient']} {row['view']} {row['phase']}"


def _check_attributes(
    frames: pd.DataFrame,
    needed: Iterable[str],
    shape_of: Mapping[tuple[str, str, str, str], str],
    wanted: Sequence[str],
    synthetic: bool,
) -> None:
    """Raise for the first attribute missing, naming the first image without it and how many there are."""
    for name in [clause for clause in _CLAUSES if clause in needed]:
        if name == "shape":
            keys = zip(frames["patient"], frames["view"], frames["phase"], strict=True)
            lacking = [
                f"{' '.join(key)} {structure}"
                for key in keys
                for structure in STRUCTURES.values()
                if _is_na(shape_of.get((*key, structure)))
            ]
            what, cure = "structures", "give shapes=shapes.name_shapes(frames)"
        else:
            gone = frames[name].isna() if name in frames.columns else [True] * len(frames)
            lacking = [_image_name(row) for _, row in frames[gone].iterrows()]
            what, cure = "images", "complete the cohort's metadata"
        if lacking:
            level = next(level for level in wanted if name in attributes_of(level, synthetic))
            raise PromptError(
                f"{level} needs {name}, which is missing for {lacking[0]}"
                + (f" and {len(lacking) - 1} more {what}" if len(lacking) > 1 else "")
                + f": {cure}, choose levels without it, or drop the clause with missing='omit'"
            )

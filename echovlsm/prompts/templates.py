"""Prompts: what a picture's metadata says about a structure, in the words of the paper's authors.

Source: Adhikari et al., "Synthetic Boost", ASMUS 2023, section 2.2 (levels P0-P7), and the prompt files of
their MIT-licensed repository, which this module reproduces to the letter, including the article `a` before
every age (`a eighteen-year-old male`) and `end of the diastole cycle`.

Each level adds one attribute: P0 nothing (the empty text), P1 structure, P2 + view, P3 + phase, P4 + sex,
P5 + age, P6 + image quality, P7 + shape. A synthetic cohort has no image quality, so that its P6 is
P5 + shape and it has no P7.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from echovlsm import PHASES, QUALITIES, STRUCTURES, VIEWS
from echovlsm.prompts.shapes import name_shapes

if TYPE_CHECKING:
    import pandas as pd

LEVELS: tuple[str, ...] = ("P0", "P1", "P2", "P3", "P4", "P5", "P6", "P7")
"""The prompt levels, from the empty text to all seven attributes."""

VARIANTS: dict[int, str] = {0: "of the heart", 1: "in the cardiac ultrasound"}
"""Template variant to the words that set it apart; the order of the two in the authors' files."""

Missing = Literal["error", "omit"]

_CLAUSES = ("view", "phase", "sex", "age", "quality", "shape")
_NEEDS = {level: _CLAUSES[: max(0, i - 1)] for i, level in enumerate(LEVELS)}
_NEEDS_SYNTHETIC = _NEEDS | {"P6": ("view", "phase", "sex", "age", "shape")}
_VIEW_WORDS = dict(zip(VIEWS, ("two-chamber", "four-chamber"), strict=True))
_PHASE_WORDS = dict(zip(PHASES, ("diastole", "systole"), strict=True))
_SEX_WORDS = {"F": "female", "M": "male"}
_MAX_AGE = 130
_SHAPE = r"[a-z]+(?:[ -][a-z]+)*"
_PATTERN = re.compile(
    rf"(?P<structure>{'|'.join(name.capitalize() for name in STRUCTURES.values())})"
    rf"(?: of (?P<shape>{_SHAPE}) shape)?"
    rf"(?: in (?P<view>{'|'.join(_VIEW_WORDS.values())}) view)?"
    rf" (?P<variant>{'|'.join(VARIANTS.values())})"
    rf"(?: at end of the (?P<phase>{'|'.join(_PHASE_WORDS.values())}) cycle)?"
    r"(?: of a(?: (?P<age>[a-z]+(?:[ -][a-z]+)*)-year-old)?(?: (?P<sex>female|male))?)?"
    rf"(?: with (?P<quality>{'|'.join(QUALITIES)}) image quality)?\."
)


class PromptError(ValueError):
    """An attribute which a prompt needs is missing or malformed, or a text is not one of the authors'."""


def levels_of(synthetic: bool = False) -> tuple[str, ...]:
    """Return the levels which a cohort has: P0-P7, or P0-P6 where it is synthetic."""
    return LEVELS[:-1] if synthetic else LEVELS


def attributes_of(level: str, synthetic: bool = False) -> tuple[str, ...]:
    """Return the attributes, besides the structure, which a level says, in the templates' order of levels.

    Raises:
        PromptError: an unknown level, or P7 of a synthetic cohort.
    """
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
    """Return an age in whole years as num2words spells it: 56 -> `fifty-six`.

    Raises:
        PromptError: not a whole number from 0 to 130.
    """
    from num2words import num2words

    try:
        years = int(age)
    except (TypeError, ValueError, OverflowError):
        years = -1
    if years != age or not 0 <= years <= _MAX_AGE:
        raise PromptError(f"age {age!r} is not a whole number of years from 0 to {_MAX_AGE}")
    return num2words(years)


@lru_cache(maxsize=1)
def _age_from_words() -> dict[str, int]:
    return {age_in_words(years): years for years in range(_MAX_AGE + 1)}


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
    """Return one prompt, to the letter as the paper's authors write it: the only place of the templates.

    Args:
        structure: one of the names in `echovlsm.STRUCTURES`.
        level: P0-P7.
        variant: a key of `VARIANTS`; P0 is the empty text in both.
        view: `2CH` or `4CH`.
        phase: `ED` or `ES`.
        sex: `F` or `M`.
        age: whole years.
        quality: `good`, `medium` or `poor`.
        shape: the shape's name in lower-case letters. The authors print the answer of their VQA model as it
            comes, so that besides the five names `triangular` and `rectangular` occur.
        missing: `error` raises where an attribute that the level needs is None or NA, `omit` drops its
            clause.
        synthetic: the prompt is for a synthetic cohort: P6 is P5 + shape, P7 does not exist.

    Raises:
        PromptError: an unknown structure, level or variant; an attribute missing or malformed.
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
        text += f" of {_shape_word(present['shape'])} shape"
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
    shapes: pd.DataFrame | Mapping[tuple[str, str, str, str], str] | None = None,
    missing: Missing = "error",
    synthetic: bool | None = None,
    levels: Sequence[str] = LEVELS,
) -> pd.DataFrame:
    """Return every prompt of every structure in every picture of one cohort.

    Args:
        frames: the frames table, one row a picture: `patient, view, phase`, and as the levels need them
            `sex`, `age` and `quality`. A column that is absent counts as missing everywhere.
        shapes: the shape's name of each structure, for the levels that say it: a table with the columns
            `patient, view, phase, structure, shape` (that of `shapes.name_shapes`) or a mapping from
            (patient, view, phase, structure).
        missing: `error` raises at the first attribute that a level needs and a picture lacks; `omit` drops
            the clause.
        synthetic: whether the cohort is synthetic; None asks `frames.attrs["meta"]["kind"]` (no kind: not
            synthetic).
        levels: which levels to make; only the attributes that these say are asked for. P7 does not exist for
            a synthetic cohort and has no rows there.

    Returns:
        DataFrame: `patient, view, phase, structure, level, variant, text`, one row a picture, structure,
        level and variant, in this order; `variant` is a key of `VARIANTS`. `attrs` are those of `frames`.

    Raises:
        PromptError: an attribute missing or malformed (named with its picture and the remedy), an unknown
            level, or two rows of one picture.
    """
    import pandas as pd

    _check_missing(missing)
    if synthetic is None:
        synthetic = (frames.attrs.get("meta") or {}).get("kind") == "synthetic"
    wanted = _wanted_levels(levels, synthetic)
    needed = {name for level in wanted for name in attributes_of(level, synthetic)}
    absent = [name for name in ("patient", "view", "phase") if name not in frames.columns]
    if absent:
        raise PromptError(
            f"the frames table has no column {', '.join(absent)}: read it with cohort.read_cohort"
        )
    keys = ["patient", "view", "phase"]
    twice = frames[frames.duplicated(keys)]
    if len(twice):
        raise PromptError(
            f"{_picture(twice.iloc[0])} occurs twice in the frames table: "
            "make the prompts of one cohort at a time"
        )
    shape_of = _shape_lookup(shapes) if "shape" in needed else {}
    if missing == "error":
        _check_attributes(frames, needed, shape_of, wanted, synthetic)
    names = list(STRUCTURES.values())
    columns = [
        frames[c] if c in frames.columns else [None] * len(frames) for c in (*keys, "sex", "age", "quality")
    ]
    rows: list[tuple[Any, ...]] = []
    for patient, view, phase, sex, age, quality in zip(*columns, strict=True):
        for structure in names:
            shape = shape_of.get((patient, view, phase, structure))
            for level in wanted:
                for variant in VARIANTS:
                    try:
                        text = make_prompt(
                            structure,
                            level,
                            variant,
                            view=view,
                            phase=phase,
                            sex=sex,
                            age=age,
                            quality=quality,
                            shape=shape,
                            missing=missing,
                            synthetic=synthetic,
                        )
                    except PromptError as error:
                        raise PromptError(f"{patient} {view} {phase}: {error}") from error
                    rows.append((patient, view, phase, structure, level, variant, text))
    table = pd.DataFrame(rows, columns=[*keys, "structure", "level", "variant", "text"])
    table["variant"] = table["variant"].astype("int64")
    table.attrs = dict(frames.attrs)
    return table


def parse_prompt(text: str) -> dict[str, Any]:
    """Return what a prompt says, from any text that `make_prompt` can write (also with clauses omitted).

    Returns:
        dict: `structure, level, variant, view, phase, sex, age, quality, shape, synthetic`; None where the
        text does not say it. `level` is None where clauses were omitted so that no level has exactly these.
        `synthetic` is True where only a synthetic cohort has the text (P6 with shape, without quality).

    Raises:
        PromptError: the text is not of the templates.
    """
    names = ("structure", "level", "variant", *_CLAUSES)
    if text == "":
        return dict.fromkeys(names) | {"level": "P0", "synthetic": False}
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise PromptError(f"not a prompt of the authors' templates: {text!r}; make_prompt writes those")
    found: dict[str, Any] = dict.fromkeys(names) | match.groupdict()
    if found["age"] is not None and found["age"] not in _age_from_words():
        raise PromptError(f"{found['age']!r} is not an age in words, in the prompt {text!r}")
    if " of a" in text and found["age"] is None and found["sex"] is None:
        raise PromptError(f"not a prompt of the authors' templates: {text!r}")
    found["structure"] = found["structure"].lower()
    found["variant"] = {words: number for number, words in VARIANTS.items()}[found["variant"]]
    found["view"] = {words: name for name, words in _VIEW_WORDS.items()}.get(found["view"])
    found["phase"] = {words: name for name, words in _PHASE_WORDS.items()}.get(found["phase"])
    found["sex"] = {words: name for name, words in _SEX_WORDS.items()}.get(found["sex"])
    found["age"] = _age_from_words().get(found["age"])
    said = {name for name in _CLAUSES if found[name] is not None}
    found["synthetic"] = said == set(_NEEDS_SYNTHETIC["P6"])
    needs = _NEEDS_SYNTHETIC if found["synthetic"] else _NEEDS
    found["level"] = next((level for level in LEVELS[1:] if set(needs[level]) == said), None)
    return found


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


def _shape_word(shape: Any) -> str:
    if not isinstance(shape, str) or re.fullmatch(_SHAPE, shape) is None:
        raise PromptError(f"shape {shape!r} is not a name in lower-case letters")
    return shape


def _wanted_levels(levels: Sequence[str], synthetic: bool) -> tuple[str, ...]:
    if isinstance(levels, str):
        levels = (levels,)
    for level in levels:
        if level not in LEVELS:
            raise PromptError(f"unknown prompt level {level!r}: one of {', '.join(LEVELS)}")
    wanted = tuple(level for level in dict.fromkeys(levels) if level in levels_of(synthetic))
    if levels and not wanted:
        raise PromptError("a synthetic cohort has no P7: choose from " + ", ".join(levels_of(True)))
    return wanted


def _shape_lookup(
    shapes: pd.DataFrame | Mapping[tuple[str, str, str, str], str] | None,
) -> Mapping[tuple[str, str, str, str], str]:
    if shapes is None:
        return {}
    if isinstance(shapes, Mapping):
        return shapes
    columns = ["patient", "view", "phase", "structure", "shape"]
    absent = [name for name in columns if name not in shapes.columns]
    if absent:
        raise PromptError(
            f"the shapes table has no column {', '.join(absent)}: make it with shapes.name_shapes"
        )
    twice = shapes[shapes.duplicated(columns[:4])]
    if len(twice):
        raise PromptError(
            f"{_picture(twice.iloc[0])} {twice.iloc[0]['structure']} occurs twice in the shapes table"
        )
    return {tuple(row[:4]): row[4] for row in shapes[columns].itertuples(index=False, name=None)}


def _picture(row: Any) -> str:
    return f"{row['patient']} {row['view']} {row['phase']}"


def _check_attributes(
    frames: pd.DataFrame,
    needed: Iterable[str],
    shape_of: Mapping[tuple[str, str, str, str], str],
    wanted: Sequence[str],
    synthetic: bool,
) -> None:
    """Raise for the first attribute missing, naming the first picture without it and how many there are."""
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
            lacking = [_picture(row) for _, row in frames[gone].iterrows()]
            what, cure = "pictures", "complete the cohort's metadata"
        if lacking:
            level = next(level for level in wanted if name in attributes_of(level, synthetic))
            raise PromptError(
                f"{level} needs {name}, which is missing for {lacking[0]}"
                + (f" and {len(lacking) - 1} more {what}" if len(lacking) > 1 else "")
                + f": {cure}, choose levels without it, or drop the clause with missing='omit'"
            )


def prompts_for(frames: pd.DataFrame, level: str, missing: str = "error") -> pd.DataFrame:
    """Prompts table of one level for a cohort's frames; shapes are read off the masks where it names them."""

    synthetic = frames.attrs.get("meta", {}).get("kind") == "synthetic"
    shapes = name_shapes(frames, missing=missing) if "shape" in attributes_of(level, synthetic) else None
    return make_prompts(frames, shapes=shapes, missing=missing, levels=(level,))

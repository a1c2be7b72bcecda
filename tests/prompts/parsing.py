"""What a prompt says: the way back from the text of `make_prompt`, for tests."""

from __future__ import annotations

import re
from typing import Any

from echovlsm import PHASES, QUALITIES, STRUCTURES, VIEWS
from echovlsm.prompts.templates import LEVELS, VARIANTS, age_in_words, attributes_of

CLAUSES = attributes_of("P7")
WORDS = {
    "view": dict(zip(("two-chamber", "four-chamber"), VIEWS, strict=True)),
    "phase": dict(zip(("diastole", "systole"), PHASES, strict=True)),
    "sex": {"female": "F", "male": "M"},
    "age": {age_in_words(years): years for years in range(131)},
}
NAME = "[a-z]+(?:[ -][a-z]+)*"


def parse_prompt(text: str) -> dict[str, Any]:
    """What a prompt says, also one with clauses omitted; ValueError where it is none of the templates.

    Returns
    -------
    dict
        `structure, level, variant, view, phase, sex, age, quality, shape, synthetic`; None where the text
        does not say it. `level` is None where no level has exactly these clauses. `synthetic` is True where
        only a synthetic cohort has the text.
    """
    names = ("structure", "level", "variant", *CLAUSES)
    if text == "":
        return dict.fromkeys(names) | {"level": "P0", "synthetic": False}
    match = re.fullmatch(
        rf"(?P<structure>{'|'.join(name.capitalize() for name in STRUCTURES.values())})"
        rf"(?: of (?P<shape>{NAME}) shape)?"
        rf"(?: in (?P<view>{'|'.join(WORDS['view'])}) view)?"
        rf" (?P<variant>{'|'.join(VARIANTS.values())})"
        rf"(?: at end of the (?P<phase>{'|'.join(WORDS['phase'])}) cycle)?"
        rf"(?: of a(?: (?P<age>{NAME})-year-old)?(?: (?P<sex>female|male))?)?"
        rf"(?: with (?P<quality>{'|'.join(QUALITIES)}) image quality)?\.",
        text,
    )
    if match is None or (" of a" in text and match["age"] is None and match["sex"] is None):
        raise ValueError(f"not a prompt of the templates: {text!r}")
    found: dict[str, Any] = dict.fromkeys(names) | match.groupdict()
    for name, words in WORDS.items():
        if found[name] is not None and found[name] not in words:
            raise ValueError(f"{found[name]!r} is no {name} in words, in the prompt {text!r}")
        found[name] = words.get(found[name])
    found["structure"] = found["structure"].lower()
    found["variant"] = next(number for number, words in VARIANTS.items() if words == found["variant"])
    said = {name for name in CLAUSES if found[name] is not None}
    found["synthetic"] = said == set(attributes_of("P6", synthetic=True))
    levels = LEVELS[1:7] if found["synthetic"] else LEVELS[1:]
    found["level"] = next((at for at in levels if set(attributes_of(at, found["synthetic"])) == said), None)
    return found

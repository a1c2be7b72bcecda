"""Sentences about something else: their frames, their number, and what they never name."""

from __future__ import annotations

from echovlsm import STRUCTURES
from echovlsm.prompts.negatives import other_sentences

NAMES = tuple(STRUCTURES.values())
PROMPTS = [f"{name.capitalize()} {where}." for name in NAMES for where in ("of the heart", "in an echo")]


def test_half_of_them_are_prompts_in_which_only_the_thing_is_another() -> None:
    texts = other_sentences(PROMPTS, NAMES, 400, seed=1)
    assert len(set(texts)) == 400
    own = [text for text in texts if text.endswith((" of the heart.", " in an echo."))]
    assert 0.4 < len(own) / 400 < 0.6
    assert all(text.endswith(".") and text[0].isupper() for text in texts)
    assert not [text for text in texts for name in NAMES if name in text.lower()]


def test_they_depend_on_the_seed_alone() -> None:
    assert other_sentences(PROMPTS, NAMES, 50, 3) == other_sentences(PROMPTS, NAMES, 50, 3)
    assert set(other_sentences(PROMPTS, NAMES, 50, 3)) != set(other_sentences(PROMPTS, NAMES, 50, 4))


def test_the_empty_prompt_lends_no_frame() -> None:
    texts = other_sentences([""], NAMES, 100)
    assert not [text for text in texts if "heart" in text]

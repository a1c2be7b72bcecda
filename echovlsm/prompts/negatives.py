"""Sentences about something else: with them a model learns that what an image does not show has no outline.

Half of them are a cohort's own prompts with another thing in the structure's place ("Suitcase of the
heart."), so that only the thing tells them apart; half are sentences as anybody may type them ("A suitcase
on a meadow."). Things come from many fields of life, among them organs that no apical view shows. A part is
made up of two words ("suimead"): a tokenizer reads a word that it does not know piece by piece.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

_FIELDS = """
    horse cow pig sheep goat rabbit mouse tiger lion wolf fox bear monkey whale shark salmon trout eagle owl
    crow swan duck chicken parrot snake lizard turtle frog spider ant bee butterfly snail worm camel zebra
    dolphin

    rose tulip lily daisy oak birch maple pine fern moss mushroom cactus bamboo ivy meadow forest grass leaf
    root seed branch blossom

    bread butter cheese egg milk coffee juice wine beer soup salad rice pasta potato carrot onion garlic
    pepper cabbage apple pear cherry banana lemon grape melon peach sugar salt honey chocolate cake biscuit
    sandwich

    house castle palace tower cottage barn hotel museum library school factory hospital theatre prison
    market shop roof door stairs chimney balcony fence corridor cellar attic bathroom carpet curtain ceiling
    brick

    table chair bed desk shelf cupboard mirror lamp candle pillow blanket towel basket bottle plate bowl
    fork knife spoon kettle oven fridge broom bucket ladder hammer nail screw saw rope needle thread key
    lock clock umbrella

    car bus train tram lorry tractor motorcycle boat ship ferry canoe submarine rocket helicopter balloon
    wheel engine anchor sail road tunnel station harbour airport railway

    shirt trousers jacket coat skirt dress sock boot glove scarf hat belt button pocket ring necklace
    suitcase

    mountain valley hill desert island beach lake ocean waterfall cave volcano glacier swamp cloud rain
    storm thunder fog rainbow sun star planet comet galaxy sand stone crystal diamond iron copper silver

    piano drum trumpet flute harp song opera novel poem newspaper dictionary painting statue photograph film
    camera telephone television computer keyboard printer robot battery satellite telescope microscope

    football tennis chess swimming hockey marathon puzzle kite doll toy holiday birthday wedding concert
    carnival

    doctor nurse teacher farmer baker soldier king queen pirate clown judge lawyer sailor singer painter
    baby uncle cousin neighbour crowd

    justice freedom money war peace science history mathematics weather music religion language economy
    summer winter Tuesday midnight colour number question answer mistake secret dream journey

    brain skull eye ear nose tongue tooth throat neck shoulder elbow wrist finger thumb hip knee ankle foot
    hair spine pelvis stomach bowel appendix pancreas liver bladder prostate uterus ovary placenta
    fetus breast meniscus retina cornea cochlea tonsil oesophagus trachea bronchus adrenal ureter
    colon femur tibia
"""
_LOOKS = "old new big small red green blue yellow black white wooden broken wet dry heavy empty happy quiet"
NOUNS: tuple[str, ...] = tuple(_FIELDS.split())
"""Things that no apical view of a heart shows."""
QUALITIES: tuple[str, ...] = tuple(_LOOKS.split())
_THINGS = ("{noun}", "{noun}", "{quality} {noun}", "{noun} {noun}", "left {noun}", "{noun} cavity")
_FRAMES = (
    *("{}", "a {}", "the {}", "the {} in the image", "the {} of the {}", "a {} on a {}", "a {} and a {}"),
    *("where is the {}", "a {} in front of the {}", "the {} around the {}", "a {} that is on a {}"),
)
_MADE_UP = 0.3
"""Share of the things that are made up of the beginnings of two words."""


def other_sentences(
    prompts: Sequence[str], structures: Collection[str], count: int, seed: int = 0
) -> list[str]:
    """So many distinct sentences about something else.

    `prompts` are a cohort's, which begin with the name of one of `structures`; others, such as P0's empty
    text, lend no frame.
    """
    rng = np.random.default_rng(seed)
    names = [name.capitalize() for name in structures]
    own = ["{}" + text.removeprefix(name) for text in prompts for name in names if text.startswith(name)]
    found: dict[str, None] = {}
    while len(found) < count:
        frames = own if own and rng.random() < 0.5 else _FRAMES
        frame = frames[rng.integers(len(frames))]
        text = frame.format(*(_thing(rng) for _ in range(frame.count("{}"))))
        found[text[0].upper() + text[1:].rstrip(".") + "."] = None
    return list(found)


def _thing(rng: np.random.Generator) -> str:
    def noun() -> str:
        first, second = rng.choice(NOUNS, 2)
        return (
            first[: rng.integers(2, 5)] + second[: rng.integers(2, 5)] if rng.random() < _MADE_UP else first
        )

    frame = _THINGS[rng.integers(len(_THINGS))]
    while "{noun}" in frame:
        frame = frame.replace("{noun}", noun(), 1)
    return frame.format(quality=rng.choice(QUALITIES))

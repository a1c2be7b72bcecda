"""What the study on real hearts consists of: trainings of equal compute, in the order in which they run.

A run is one or two cycles. Each cycle is a training of its own, with a learning rate that rises and falls to
zero: the first stands where a pretraining stands, the second where a finetuning does. Arms differ in what the
cycles learn from, and in nothing else:

| arm | first cycle | second cycle |
| --- | --- | --- |
| nothing (`real` in the paper's table) | real images | the same real images |
| phantom, diffusion, diffusion and phantom | synthetic images | real images |
| synthetic | synthetic images | the same synthetic images |
| joint | real and synthetic images | the same images |

The ablation's arms are named by their phantoms: these first, then real images, or without any these again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from echovlsm.phantom import versions

HELD_OUT, VALIDATION = "held_out", "validation"
"""Who is scored: training patients that stay out of every training, and the official validation patients."""

ALL = 360
"""Training patients of CAMUS less the tenth that is held out."""

SIZES: tuple[int, ...] = (5, 10, 25, 50, 100, ALL)
"""The annotation budget: numbers of annotated patients."""

FIRST_SEED = 1000
"""Added to the seed of a first cycle: two cycles on the same images differ in order and augmentation."""

WEIGHTS: dict[str, str] = {
    "cris": "data/weights/cris-tiny",
    "clipseg": "data/weights/clipseg-tiny",
    "unet": "",
}
"""Where each model starts."""

RATES: dict[str, float] = {"clipseg": 5e-4}
"""Peak learning rates of models that the recipe's own does not suit; chosen as it was."""

PHANTOM, SDM, BOTH, NOTHING = "phantom", "diffusion", "diffusion+phantom", "nothing"

WITHOUT: dict[str, str] = {f"{PHANTOM}-without-{name}": name for name in versions.INGREDIENTS}
"""Kinds of phantoms with one ingredient left out."""

TUNED = f"{PHANTOM}-tuned"
"""Phantoms of the version that was tuned on CAMUS's training patients."""

PHANTOMS: dict[str, tuple[int, tuple[str, ...]]] = {
    PHANTOM: (1, ()),
    TUNED: (versions.TUNED, ()),
    **{kind: (1, (name,)) for kind, name in WITHOUT.items()},
}
"""Version, and ingredients left out, of every kind of phantoms."""


@dataclass(frozen=True)
class Recipe:
    """How every run of the study is trained; chosen on the held-out training patients.

    `image_size` in pixels; `first` and `second`: optimiser steps of the cycles; `rate`: peak of AdamW's
    learning rate in either, but for the models of `RATES`; `look_every`: steps between looks at the held-out
    patients; `holdout`: their share of the training patients, drawn with `holdout_seed`.
    """

    image_size: int = 64
    first: int = 2400
    second: int = 2400
    batch_size: int = 8
    rate: float = 2e-3
    weight_decay: float = 1e-3
    augment: bool = True
    look_every: int = 100
    holdout: float = 0.1
    holdout_seed: int = 42
    score_size: int = 512


@dataclass(frozen=True)
class Source:
    """Images that a cycle learns from.

    Parameters
    ----------
    kind
        ``real``, a key of `PHANTOMS`, ``diffusion``, ``diffusion+phantom`` or ``joint`` (real and diffusion).
    patients
        Real patients: learned from themselves, or by the denoiser and for its labels.
    seed
        Of the draw of these patients; irrelevant, and 0, where all are taken.
    """

    kind: str
    patients: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """Short and unique."""
        parts = [self.kind, f"{self.patients:03d}" if self.patients else ""]
        drawn = f"seed{self.seed}" if 0 < self.patients < ALL else ""
        return "-".join(part for part in (*parts, drawn) if part)


@dataclass(frozen=True)
class Cycle:
    """One training: from the model's weights, or from what the cycle `before` left."""

    model: str
    encoders: str
    prompt: str
    source: Source
    steps: int
    seed: int
    before: Cycle | None = None

    def chain(self) -> list[Cycle]:
        """This cycle and those before it, first to last."""
        return [*(self.before.chain() if self.before else []), self]


@dataclass(frozen=True)
class Run:
    """A model that is scored.

    Parameters
    ----------
    block
        Runs that are made together in about two hours of one core or less; its first word is the `part` of
        the study.
    arm
        What the first cycle learned from: ``nothing`` more than the second, or the name of a source; or the
        strategy ``zeroshot``, ``synthetic`` or ``joint``.
    last
        The last cycle; None for a model that learns nothing.
    patients
        Real patients that it learned from.
    choice
        Whether it serves to choose the recipe: then it is scored on the held-out patients only.
    """

    block: str
    arm: str
    model: str
    encoders: str
    prompt: str
    patients: int
    seed: int
    last: Cycle | None
    recipe: Recipe
    choice: bool = False

    @property
    def cycles(self) -> list[Cycle]:
        """First to last."""
        return self.last.chain() if self.last else []

    @property
    def part(self) -> str:
        """Part of the study: the block's first word."""
        return self.block.split("-")[0]

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(cycle.steps for cycle in self.cycles)

    def made_from(self, cycle: Cycle | None = None) -> dict[str, object]:
        """All parameters that decide what the run, or one of its cycles, learns; no place, no code."""
        chain = [_plain(one) for one in (cycle.chain() if cycle else self.cycles)]
        how = {"cycles": chain, "recipe": asdict(self.recipe)}
        if cycle:
            return how
        return {**how, "model": [self.model, self.encoders, self.prompt], "choice": self.choice}

    @property
    def name(self) -> str:
        """Name of its record: readable, and unique by a hash of `made_from`."""
        words = (self.model, self.prompt, self.arm, f"{self.patients:03d}", f"seed{self.seed}")
        extra = "" if self.encoders == "unfrozen" else f"-{self.encoders}"
        return "-".join(words).replace("+", "-") + f"{extra}-{digest(self.made_from())}"


def _plain(cycle: Cycle) -> dict[str, object]:
    return {key: value for key, value in asdict(cycle).items() if key != "before"}


def digest(content: object) -> str:
    """Eight hexadecimal digits that stand for `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


# -- arms -------------------------------------------------------------------------------------------------


def two_cycles(
    block: str, arm: str, sources: tuple[Source, Source], patients: int, seed: int, recipe: Recipe, **how: Any
) -> Run:
    """A run whose two cycles learn from `sources`; `how`: model, prompt, encoders, choice."""
    choice = how.pop("choice", False)
    kind = {"model": "cris", "encoders": "unfrozen", "prompt": "P1"} | how
    first = Cycle(**kind, source=sources[0], steps=recipe.first, seed=FIRST_SEED + seed)
    last = Cycle(**kind, source=sources[1], steps=recipe.second, seed=seed, before=first)
    return Run(block, arm, patients=patients, seed=seed, last=last, recipe=recipe, choice=choice, **kind)


def real_run(
    block: str, arm: str, source: Source | None, patients: int, seed: int, recipe: Recipe, **how: Any
) -> Run:
    """A run whose second cycle learns from real patients; `source` None: its first cycle too."""
    seen = Source("real", patients, seed if patients < ALL else 0)
    return two_cycles(block, arm, (source or seen, seen), patients, seed, recipe, **how)


def other_run(block: str, arm: str, source: Source, seed: int, recipe: Recipe, **how: Any) -> Run:
    """A run both of whose cycles learn from `source`: the strategies ``synthetic`` and ``joint``."""
    patients = ALL if arm == "joint" else 0
    return two_cycles(block, arm, (source, source), patients, seed, recipe, **how)


# -- the study --------------------------------------------------------------------------------------------


def doubling(recipe: Recipe) -> list[Run]:
    """Half and twice the steps, other rates and a larger image: what the choice of the recipe rests on."""
    half = replace(recipe, first=recipe.first // 2, second=recipe.second // 2)
    twice = replace(recipe, first=recipe.first * 2, second=recipe.second * 2)
    rates = [replace(half, rate=recipe.rate * factor) for factor in (1, 0.5, 2, 0.25)]
    trials = [(how, size) for how in rates[:2] for size in (25, ALL, 5)]
    trials += [(how, size) for how in (*rates[2:], replace(half, image_size=96)) for size in (25, ALL)]
    runs = [real_run("recipe", NOTHING, None, size, 0, how, choice=True) for how, size in trials]
    for size in (25, 5, ALL):
        for arm, source in ((NOTHING, None), (PHANTOM, Source(PHANTOM))):
            runs.append(real_run("doubling", arm, source, size, 0, twice, choice=True))
    return runs


def rates(recipe: Recipe) -> list[Run]:
    """CLIPSeg at half the steps and several rates, then at its own and twice the steps; real images only."""
    half = replace(recipe, first=recipe.first // 2, second=recipe.second // 2)
    twice = replace(recipe, first=recipe.first * 2, second=recipe.second * 2, rate=RATES["clipseg"])
    trials = [*(replace(half, rate=recipe.rate * factor) for factor in (1, 0.5, 0.25, 0.125)), twice]
    return [real_run("rates", NOTHING, None, ALL, 0, how, model="clipseg", choice=True) for how in trials]


def budget(recipe: Recipe) -> list[Run]:
    """Dice against annotated patients, with and without synthetic images (CRIS, P1), a seed a block."""
    runs: list[Run] = []
    for seed in range(5):
        for size in SIZES if seed < 3 else (5, 25):
            for arm, source in ((NOTHING, None), (PHANTOM, Source(PHANTOM))):
                runs.append(real_run(f"budget-{seed}", arm, source, size, seed, recipe))
    for seed in range(3):
        for kind in (SDM, BOTH):
            source, block = Source(kind, ALL), f"budget-diffusion-{seed}"
            runs += [real_run(block, kind, source, size, seed, recipe) for size in (5, 25, 100)]
    for seed, size in ((0, 25), (1, 25), (0, 100)):
        block, source = f"budget-few-{size}", Source(SDM, size, seed)
        runs.append(real_run(block, f"{SDM}-few", source, size, seed, recipe))
    return runs


def table(recipe: Recipe) -> list[Run]:
    """The paper's Table 2 with small models, and the text-blind reference; P7 without what the copy lacks."""
    sdm, runs = Source(SDM, ALL), []

    def cell(block: str, model: str, prompt: str, seed: int, encoders: str = "unfrozen") -> None:
        how = {"model": model, "prompt": prompt, "encoders": encoders}
        own = replace(recipe, rate=RATES.get(model, recipe.rate))
        if seed == 0:
            runs.append(Run(block, "zeroshot", model, encoders, prompt, 0, 0, None, own))
        if prompt != "P7":
            runs.append(other_run(block, "synthetic", sdm, seed, own, **how))
        runs.append(real_run(block, NOTHING, None, ALL, seed, own, **how))
        runs.append(real_run(block, SDM, sdm, ALL, seed, own, **how))
        if prompt == "P1" and encoders == "unfrozen":
            joint = Source("joint", ALL)
            runs.append(other_run(block, "joint", joint, seed, own, **how))
            runs.append(real_run(block, PHANTOM, Source(PHANTOM), ALL, seed, own, **how))

    for seed in range(3):
        for model in ("cris", "clipseg", "unet"):
            cell(f"table-P1-{seed}", model, "P1", seed)
        for model in ("cris", "clipseg"):
            cell(f"table-P7-{seed}", model, "P7", seed)
    for prompt in ("P0", "P2", "P3"):
        for model in ("cris", "clipseg"):
            cell(f"prompts-{prompt}", model, prompt, 0)
    for model in ("cris", "clipseg"):
        cell("frozen", model, "P1", 0, "frozen")
    return [run for run in runs if not (run.model == "unet" and run.arm in ("zeroshot", "joint"))]


def ablation(recipe: Recipe) -> list[Run]:
    """What makes a phantom a good training source: one ingredient left out, 0 and 5 patients.

    A seed a block, judged on the held-out patients alone. With 5 patients the whole phantom, and no phantom,
    are the budget's.
    """
    runs: list[Run] = []
    for seed in range(3):
        block, how = f"ablation-{seed}", {"choice": True}
        for kind in (PHANTOM, *WITHOUT):
            runs.append(other_run(block, kind, Source(kind), seed, recipe, **how))
            if kind in WITHOUT:
                runs.append(real_run(block, kind, Source(kind), 5, seed, recipe, **how))
    return runs


def tuned(recipe: Recipe) -> list[Run]:
    """Phantoms that were tuned on CAMUS, with no, 5 and 25 patients; and those that were not, with none.

    With 5 and 25 patients the phantoms that were not, and no phantom, are the budget's.
    """
    runs: list[Run] = []
    for seed in range(3):
        block = f"tuned-{seed}"
        runs += [other_run(block, kind, Source(kind), seed, recipe) for kind in (PHANTOM, TUNED)]
        runs += [real_run(block, TUNED, Source(TUNED), size, seed, recipe) for size in (5, 25)]
    return runs


def study(recipe: Recipe | None = None) -> list[Run]:
    """Every run in order, none twice."""
    recipe = recipe or Recipe()
    found = [*doubling(recipe), *rates(recipe), *budget(recipe), *table(recipe)]
    found += [*tuned(recipe), *ablation(recipe)]
    return list({run.name: run for run in reversed(found)}.values())[::-1]


def blocks(runs: Sequence[Run]) -> list[str]:
    """Names of the blocks, in order."""
    return list(dict.fromkeys(run.block for run in runs))

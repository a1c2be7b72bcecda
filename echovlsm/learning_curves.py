"""When does synthetic data help? Dice against the number of real patients, with and without pretraining.

`echovlsm.real_study` is the command. Every run starts from the same weights, or from what these became on
synthetic cohorts, and takes the same number of optimiser steps on the pictures of a few real patients. The
learning rate falls to zero over those steps and the last weights are scored: nothing is chosen on annotated
pictures that the few patients would not have had. The patients of a seed are nested: its 25 hold its 5. A
pretraining is made once and shared.

The finished runs are files of their own, so a killed study goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from echovlsm import STRUCTURES, files, runs
from echovlsm.files import read_json

if TYPE_CHECKING:
    from echovlsm.triplets import Triplets

NONE = "none"
"""Name of the runs without pretraining."""

LONGER = "longer"
"""Name of the control: no pretraining, but as many steps more on real pictures as a pretraining has."""

LOOK_EVERY = 2
"""While training, every second patient is looked at; in the end all are scored."""


class CurveError(ValueError):
    """Settings or a folder that cannot be used; the message names the remedy."""


@dataclass(frozen=True)
class Plan:
    """What fixes a study, but for the order of its runs.

    Parameters
    ----------
    model, weights, encoders, image_size, prompt
        As in notebook 04.
    pretraining
        Name of each pretraining and the synthetic cohorts it learns from, together.
    holdout, holdout_seed
        Share of the training patients that stays out, as in the main run: the denoiser has not seen them.
    steps, pretraining_steps, batch_size, learning_rate
        Optimiser steps of AdamW on real and on synthetic pictures; both with `training.cosine_rate`.
    looks
        Steps after which the Dice of some of the scored pictures is taken.
    """

    cohort: str
    pretraining: dict[str, list[str]]
    model: str = "cris"
    weights: str = "data/weights/cris-tiny"
    encoders: str = "unfrozen"
    image_size: int = 0
    prompt: str = "P1"
    evaluate_on: str = "val"
    holdout: float = 0.1
    holdout_seed: int = 42
    steps: int = 100
    pretraining_steps: int = 400
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    augment: bool = True
    score_size: int = 512
    looks: tuple[int, ...] = (10, 25, 50)


@dataclass(frozen=True)
class Run:
    """One point of a curve: a pretraining, so many patients (0: the pretrained model as it is), a seed."""

    pretraining: str
    patients: int
    seed: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.pretraining}-{self.patients:03d}-seed{self.seed}.json"


def all_runs(
    names: Sequence[str], sizes: Sequence[int], seeds: Sequence[int], control: Sequence[int] = ()
) -> list[Run]:
    """Every run, the first seed's whole grid before the second's, so that a study may be cut short.

    `control` has the sizes of the runs `LONGER`, of the first seed; they come after the second seed's grid.
    """
    starts = [Run(name, 0, seeds[0]) for name in names]
    grids = [[Run(name, size, seed) for size in sizes for name in names] for seed in seeds]
    longer = [Run(LONGER, size, seeds[0]) for size in control]
    return [*starts, *chain(*grids[:2]), *longer, *chain(*grids[2:])]


class Study:
    """The pictures of a plan in memory, its folder, and the runs that are there.

    Raises
    ------
    CurveError
        The folder holds runs of another plan, other data or other weights.
    """

    def __init__(self, plan: Plan, folder: str | Path) -> None:
        from echovlsm.cohort import cohort_hash, read_cohort
        from echovlsm.triplets import hold_out

        self.plan, self.folder = plan, runs.resolve(folder)
        frames = read_cohort(runs.resolve(plan.cohort))
        frames = frames[frames["labels"].notna()].reset_index(drop=True)
        self.meta = frames.attrs["meta"]
        self.scored = frames[frames["split"] == plan.evaluate_on].reset_index(drop=True)
        divided = hold_out(frames, plan.holdout, plan.holdout_seed)
        self.pool = divided[divided["split"] == "train"].reset_index(drop=True)
        for table in (self.scored, self.pool):
            table.attrs["meta"] = self.meta
        self.patients = sorted(self.pool["patient"].unique())
        self.cohorts = {path: _training_part(path) for paths in plan.pretraining.values() for path in paths}
        self.made_from = {
            **{key: value for key, value in asdict(plan).items() if key not in ("cohort", "pretraining")},
            "data_hash": cohort_hash(frames),
            "weights_hash": runs.weights_hash(plan.weights),
            "pretraining": {
                name: [f"{Path(path).name} {cohort_hash(self.cohorts[path])}" for path in paths]
                for name, paths in plan.pretraining.items()
            },
        }
        self._open()

    def _open(self) -> None:
        """Start the folder, or see that it holds this plan; a pretraining may be added later."""
        file, made = self.folder / "plan.json", json.loads(json.dumps(self.made_from))
        if file.is_file():
            before = read_json(file, CurveError, "name another --out, or delete that folder")
            there = before["pretraining"]
            same = {name: paths for name, paths in made["pretraining"].items() if name in there}
            other = [key for key in made if key != "pretraining" and before.get(key) != made[key]]
            other += [name for name, paths in same.items() if there[name] != paths]
            if other:
                raise CurveError(
                    f"{self.folder}: holds runs made otherwise ({', '.join(other)}); name another --out, or "
                    "delete that folder"
                )
            made["pretraining"] = there | made["pretraining"]
        _write(file, json.dumps(made, indent=1))

    def load(self, name: str) -> nn.Module:
        """A model to start a run from."""
        from echovlsm import models

        fresh = name in (NONE, LONGER)
        weights = self.plan.weights if fresh else self.pretrain(name)
        size = self.plan.image_size if fresh else 0
        return models.load(self.plan.model, weights, self.plan.encoders, size)

    def pretrain(self, name: str) -> Path:
        """The weights folder of a pretraining, trained now if it is not there."""
        target = self.folder / f"pretrained-{name}"
        if target.is_dir():
            return target
        runs.set_up(0, 0)
        model = self.load(NONE)
        parts = [self.triplets(self.cohorts[path], model) for path in self.plan.pretraining[name]]
        clock = time.perf_counter()
        losses = _train(model, parts, self.plan, self.plan.pretraining_steps, seed=0)
        record = {"seconds": time.perf_counter() - clock, "losses": losses}
        with files.appearing(target) as partial:
            model.save_pretrained(partial)
            (partial / "training.json").write_text(json.dumps(record))
        return target

    def triplets(self, frames: pd.DataFrame, model: nn.Module, *, learn: bool = True) -> Triplets:
        """Triplets of `frames` to learn from (both template variants, augmentation) or to score."""
        from echovlsm.triplets import make_triplets

        options = {"variant": "random", "augment": self.plan.augment} if learn else {"variant": "0"}
        return make_triplets(frames, self.plan.prompt, model, missing="omit", **options)

    def run(self, one: Run) -> dict[str, Any]:
        """Train and score one run and write its file; one that is there is read."""
        from echovlsm.strategies import limit_patients

        file = self.folder / one.file
        if file.is_file():
            return json.loads(file.read_text())
        model = self.load(one.pretraining)
        clock, curve = time.perf_counter(), []
        if not hasattr(self, "_test"):
            self._test = self.triplets(self.scored, model, learn=False)
            self._truth = _reference(self.scored, self.plan.score_size)
        chosen: list[str] = []
        if one.patients:
            runs.set_up(0, one.seed)
            few = limit_patients(self.pool, {"train": one.patients}, one.seed)
            chosen = sorted(few["patient"].unique())
            some = self.scored["patient"].isin(sorted(self.scored["patient"].unique())[::LOOK_EVERY])
            rows = np.flatnonzero(some.to_numpy())

            def look(step: int) -> None:
                curve.append([step, float(self.dice(model, rows).mean())])

            steps = self.plan.steps + (self.plan.pretraining_steps if one.pretraining == LONGER else 0)
            train = self.triplets(few, model)
            look(0)
            _train(model, [train], self.plan, steps, one.seed, dict.fromkeys(self.plan.looks, look))
            look(steps)
        dice = self.dice(model, np.arange(len(self.scored)))
        record = {
            **asdict(one),
            "learned_from": chosen,
            "curve": curve,
            "dice": [[round(float(value), 5) for value in row] for row in dice],
            "seconds": round(time.perf_counter() - clock, 1),
            "peak_memory_gib": runs.peak_memory(),
            "commit": runs.commit(),
        }
        _write(file, json.dumps(record))
        return record

    @torch.no_grad()
    def dice(self, model: nn.Module, rows: np.ndarray) -> np.ndarray:
        """Dice float (N, S) of scored pictures `rows`, at `score_size`; both empty counts as 1."""
        from echovlsm.scoring import to_mask
        from echovlsm.training import predict

        logits = predict(model, self._test, rows=rows.tolist())
        found = []
        for answer, row in zip(logits, rows, strict=True):
            truth = self._truth[row][None] == torch.arange(1, len(answer) + 1)[:, None, None]
            mask = to_mask(answer, self.plan.score_size)
            total = mask.sum((1, 2)) + truth.sum((1, 2))
            both = (mask & truth).sum((1, 2))
            found.append(torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0))
        return torch.stack(found).numpy()

    # -- results ------------------------------------------------------------------------------------

    def tables(self, wanted: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Scores (one row a mask) and curves (one row a look) of the runs that are there."""
        scores, curves = [], []
        names = self.scored[["patient", "view", "phase"]]
        for one in wanted:
            if not (self.folder / one.file).is_file():
                continue
            record = json.loads((self.folder / one.file).read_text())
            known = {key: record[key] for key in ("pretraining", "patients", "seed")}
            known = {("trained_on" if key == "patients" else key): value for key, value in known.items()}
            for place, structure in enumerate(STRUCTURES.values()):
                values = [row[place] for row in record["dice"]]
                scores.append(names.assign(**known, structure=structure, dice=values))
            for step, value in record["curve"]:
                curves.append({**known, "step": step, "dice": value})
        if not scores:
            raise CurveError(f"{self.folder}: no run is finished")
        order = ["pretraining", "trained_on", "seed", "patient", "view", "phase", "structure", "dice"]
        return pd.concat(scores, ignore_index=True)[order], pd.DataFrame(curves)


def _training_part(path: str) -> pd.DataFrame:
    """The training pictures of a synthetic cohort."""
    from echovlsm.cohort import read_cohort

    frames = read_cohort(runs.resolve(path))
    part = frames[(frames["split"] == "train") & frames["labels"].notna()].reset_index(drop=True)
    part.attrs = frames.attrs
    if part.empty:
        raise CurveError(f"pretraining: {path} has no training picture with a mask")
    return part


def _train(
    model: nn.Module,
    parts: Sequence[Triplets],
    plan: Plan,
    steps: int,
    seed: int,
    looks: dict[int, Callable[[int], None]] | None = None,
) -> list[float]:
    """Train `model` in place for `steps` on parts that take turns picture by picture; return the losses."""
    from echovlsm.training import cosine_rate, make_loss, make_optimiser

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = make_optimiser(model, plan.learning_rate, plan.weight_decay)
    loss, losses = make_loss(), []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    for step, batch in enumerate(_batches(parts, plan.batch_size, steps, seed), start=1):
        for group in optimiser.param_groups:
            group["lr"] = cosine_rate(step / steps, plan.learning_rate)
        model.train()
        images, tokens, attention, masks = (part.to(device) for part in batch)
        logits = model(model.normalise(images), tokens, attention)
        flat = (-1, 1, *logits.shape[-2:])
        value = loss(logits.reshape(flat), masks.reshape(flat))
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trainable, 0.5)
        optimiser.step()
        losses.append(round(float(value.detach()), 4))
        if looks and step in looks and step < steps:
            looks[step](step)
    if not np.isfinite(losses).all():
        raise FloatingPointError("learning curves: the loss is not finite; lower the learning rate")
    return losses


def _batches(
    parts: Sequence[Triplets], batch_size: int, steps: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Pictures, token ids, attention masks and masks of each step: a function of seed and step alone.

    Parts take turns, each in a new random order whenever it is through, so that a small one is not drowned.
    """
    orders: dict[tuple[int, int], np.ndarray] = {}
    for step in range(steps):
        items = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            part, nth = place % len(parts), place // len(parts)
            epoch, index = divmod(nth, len(parts[part]))
            if (part, epoch) not in orders:
                orders[part, epoch] = np.random.default_rng((seed, part, epoch)).permutation(len(parts[part]))
            parts[part].seed = seed
            parts[part].start_epoch(epoch + 1)
            items.append(parts[part][int(orders[part, epoch][index])])
        length = max(item["input_ids"].shape[-1] for item in items)
        yield (
            torch.stack([item["image"] for item in items]),
            *(torch.stack([_pad(item[name], length) for item in items]) for name in _WORDS),
            torch.stack([item["masks"] for item in items]),
        )


_WORDS = ("input_ids", "attention_mask")


def _pad(words: Tensor, length: int) -> Tensor:
    """Fill up to `length` with what the attention mask hides."""
    return nn.functional.pad(words, (0, length - words.shape[-1]))


def _reference(frames: pd.DataFrame, size: int) -> Tensor:
    """Label maps uint8 (N, size, size), nearest neighbour."""
    from echovlsm.cohort import load_labels
    from echovlsm.triplets import resize_labels

    return torch.stack([resize_labels(load_labels(row), size) for row in frames.itertuples()])


def _write(file: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    with files.appearing(file) as partial:
        partial.write_text(text + "\n")

"""How fast tiny weights learn real hearts: training steps until the mean Dice is 0.70.

    python -m benchmarks.adaptation CAMUS data/weights/clipseg-tiny --before OLD

The training patients of CAMUS learn or, one in ten, check; the official validation patients take no part.
Training is plain: 64 pixels, P1 prompts, batches of 8, AdamW at 1e-3 after ten steps of rise, images as they
are. What is found goes into the weights' model card.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import default_collate

SIDE, BATCH, RATE, EVERY, ENOUGH = 64, 8, 1e-3, 10, 0.70
"""Settings of the training; Dice is measured each `EVERY` steps, on `CHECKED` images."""
CHECKED = 80
HEADING = "## How fast does it learn real hearts?"


def curve(weights: Path, seed: int, cohort: Path, steps: int) -> list[float]:
    """Mean Dice after 0, `EVERY`, ... steps, until it stayed at `ENOUGH` for four checks."""
    from echovlsm import models
    from echovlsm.cohort import read_cohort
    from echovlsm.training import EpochSampler, make_loss, make_optimiser
    from echovlsm.triplets import Triplets, hold_out, prompts_for

    torch.manual_seed(seed)
    model = models.load("clipseg", weights, image_size=SIDE)
    frames = hold_out(read_cohort(cohort), 0.1, 42)
    learn, check = (
        Triplets(part, prompts_for(part, "P1"), model.tokenize, SIDE, variant=variant, seed=42)
        for part, variant in (
            (frames[frames["split"] == "train"], "random"),
            (frames[frames["split"] == "val"], 0),
        )
    )
    chosen = np.random.default_rng(0).permutation(len(check))[:CHECKED]
    checks = default_collate([check[int(index)] for index in chosen])
    optimiser, loss = make_optimiser(model, RATE, 1e-3), make_loss()
    sampler, found, epoch, order = EpochSampler(len(learn), seed), [_dice(model, checks)], 0, []
    for step in range(steps):
        if len(order) < BATCH:
            epoch += 1
            sampler.start_epoch(epoch)
            learn.start_epoch(epoch + 1000 * seed)
            order = list(sampler)
        rows, order = order[:BATCH], order[BATCH:]
        batch = default_collate([learn[index] for index in rows])
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 10)
        logits = model(model.normalise(batch["image"]), batch["input_ids"], batch["attention_mask"])
        optimiser.zero_grad()
        loss(logits.flatten(0, 1)[:, None], batch["masks"].flatten(0, 1)[:, None]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        if (step + 1) % EVERY == 0:
            found.append(_dice(model, checks))
            if min(found[-4:]) >= ENOUGH:
                break
    return found


@torch.no_grad()
def _dice(model: torch.nn.Module, checks: dict[str, torch.Tensor]) -> float:
    model.eval()
    logits = model(model.normalise(checks["image"]), checks["input_ids"], checks["attention_mask"])
    hit, truth = logits > 0, checks["masks"] > 0
    model.train()
    sizes = (hit.sum((-2, -1)) + truth.sum((-2, -1))).clamp(min=1)
    return float((2 * (hit & truth).sum((-2, -1)) / sizes).mean())


def steps_to(found: list[float], enough: float = ENOUGH) -> int | None:
    """First step from which the Dice stayed at `enough`; None if it did not."""
    below = [number for number, dice in enumerate(found) if dice < enough]
    first = below[-1] + 1 if below else 0
    return first * EVERY if first < len(found) else None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--before", type=Path, help="weights to compare with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=250, help="at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| weights | zero-shot | " + " | ".join(f"seed {seed}" for seed in arguments.seeds) + " |"]
    lines.append("|---|---:|" + "---:|" * len(arguments.seeds))
    for name, folder in (("before", arguments.before), ("these", arguments.weights)):
        if folder is None:
            continue
        curves = [curve(folder, seed, arguments.cohort, arguments.steps) for seed in arguments.seeds]
        found = [steps_to(values) for values in curves]
        cells = [str(steps) if steps is not None else f"> {arguments.steps}" for steps in found]
        lines.append(f"| {name} | {curves[0][0]:.2f} | " + " | ".join(cells) + " |")
        print(name, *(" ".join(f"{dice:.2f}" for dice in values) for values in curves), sep="\n", flush=True)
    table = "\n".join(lines)
    text = f"""{HEADING}

Steps of fine-tuning on CAMUS until the mean Dice stays at {ENOUGH:.2f}, and the Dice before the first step:
{SIDE} pixels, batches of {BATCH}, AdamW at {RATE:g}, encoders learning; {CHECKED} images of 40 training
patients held out (`benchmarks/adaptation.py`).

{table}
"""
    card = arguments.weights / "README.md"
    rest = re.sub(rf"\n*{re.escape(HEADING)}.*", "", card.read_text(), flags=re.DOTALL)
    card.write_text(f"{rest.rstrip()}\n\n{text}")


if __name__ == "__main__":
    main()

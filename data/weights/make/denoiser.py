"""The tiny denoiser that the repository carries, trained on the training patients of the demo's phantoms.

    python -m data.weights.make.denoiser --install data/weights/sdm-tiny

draws the cohort if it is not there, trains for about an hour on one thread, and writes weights, history and
model card. Interrupt it and it goes on from the last check.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

from echovlsm.cohort import cohort_hash, read_cohort
from echovlsm.phantom import write_phantom_cohort
from echovlsm.synthesis import labels, train_diffusion, trial, unet, weights

TINY = unet.SemanticUNetConfig(
    image_size=96,
    out_channels=1,
    model_channels=24,
    channel_mult=(1, 2, 3),
    num_res_blocks=1,
    attention_downsample_factors=(4,),
    num_head_channels=24,
    use_new_attention_order=True,
    spade_hidden=24,
    groupnorm_groups=8,
    patch_size=2,
)
"""96 pixels as 48 x 48 patches of 2 x 2, three levels of 24, 48 and 72 channels: 1.8 million parameters."""

CARD = """---
license: mit
library_name: diffusers
---
# sdm-tiny

A semantic diffusion model of {parameters:.1f} million parameters that draws phantom echocardiograms of
96 x 96 pixels from sector maps (`echovlsm/synthesis/labels.py` has the classes), so that the study runs
without a download. It has never seen an image of a heart: it learned from the {images} images of the
{patients} training patients of the phantom cohort of {drawn} patients, seed {cohort_seed} (content hash
`{cohort}`), and from nothing else.

    python -m data.weights.make.denoiser --install data/weights/sdm-tiny

draws, trains and writes this folder again: {steps:,} steps of {batch} images, AdamW at {rate}, {precision},
seed {seed}, {threads} thread(s), {minutes:.0f} minutes. It predicts v; a tenth of the label maps was dropped,
so that guidance works. The weights are the moving average, stored in 16 bits. `history.csv` has the loss:
{loss:.4f} in training and {val_loss:.4f} on validation patients at the end.

What its images are worth, against a floor and by what a segmenter learns from them, is measured in
notebook 02 each time it runs. They look like the phantom, not like CAMUS, and show nothing about hearts.
"""


def main(
    cohort: Annotated[Path, typer.Option(help="phantom cohort; drawn if it is not there")] = Path(
        "data/cohorts/phantom-demo"
    ),
    patients: Annotated[int, typer.Option(help="phantom patients, if it is drawn")] = 300,
    cohort_seed: Annotated[int, typer.Option(help="seed of the phantom cohort, if it is drawn")] = 0,
    out: Annotated[Path, typer.Option(help="where training lives")] = Path("runs/pretraining/sdm-tiny"),
    steps: Annotated[int, typer.Option(help="optimiser steps")] = 3600,
    batch_size: Annotated[int, typer.Option(help="images per step")] = 16,
    learning_rate: Annotated[float, typer.Option(help="peak of warm-up and cosine")] = 8e-4,
    mixed_precision: Annotated[str, typer.Option(help="no or bf16")] = "bf16",
    seed: Annotated[int, typer.Option(help="weights, order, noise")] = 0,
    threads: Annotated[int, typer.Option(help="processor threads")] = 1,
    install: Annotated[Path | None, typer.Option(help="copy the finished folder here")] = None,
) -> None:
    """Train the tiny denoiser and write its folder."""
    torch.set_num_threads(threads)
    if not cohort.exists():
        write_phantom_cohort(cohort, patients=patients, seed=cohort_seed)
    frames = read_cohort(cohort)
    if frames.attrs["meta"]["kind"] != "phantom":
        raise typer.BadParameter(
            f"{cohort}: these weights are made from phantoms; notebook 02 trains on others"
        )
    learn, check = (frames[frames["split"] == split] for split in ("train", "val"))
    seen, unseen = (labels.source_maps(table, TINY.image_size) for table in (learn, check.iloc[::3]))
    torch.manual_seed(seed)
    model = unet.SemanticUNet(TINY)
    history = train_diffusion(
        model,
        seen.images,
        seen.maps,
        out / "state",
        validation=(unseen.images, unseen.maps),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        prediction="v_prediction",
        mixed_precision=mixed_precision,
        seed=seed,
        **trial.TRAINING,
    )
    source = {"name": frames.attrs["meta"]["name"], "kind": "phantom", "hash": cohort_hash(learn)}
    weights.save_denoiser(model, "v_prediction", out, torch.float16, source)
    history.to_csv(out / "history.csv", index=False)
    meta, last = frames.attrs["meta"], history.iloc[-1]
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        images=len(learn),
        patients=learn["patient"].nunique(),
        drawn=meta["parameters"]["patients"],
        cohort_seed=meta["seed"],
        cohort=cohort_hash(frames),
        steps=steps,
        batch=batch_size,
        rate=learning_rate,
        precision=mixed_precision,
        seed=seed,
        threads=threads,
        minutes=history["seconds"].sum() / 60,
        loss=last["loss"],
        val_loss=last["val_loss"],
    )
    (out / "README.md").write_text(card)
    if install:
        shutil.copytree(out, install, dirs_exist_ok=True, ignore=shutil.ignore_patterns("state"))


if __name__ == "__main__":
    typer.run(main)

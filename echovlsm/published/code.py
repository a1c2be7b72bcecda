"""What the released code computed: one small runnable demonstration for each observation.

The authors released their code, configurations, prompts and scores; without that none of this could be seen.
Each function shows one thing with the library version concerned, or with the smallest equivalent where that
version (Transformers 4.31.0, MONAI 1.2.0) is not the installed one. Where their scripts are meant, the table
of `scores.load_settings` names file and commit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echovlsm import PHASES, STRUCTURES, VIEWS, phantom
from echovlsm.published.scores import PublishedError, true_areas


def encoder_gradients(seed: int = 0) -> pd.DataFrame:
    """Which parts of Transformers' CLIPSeg get a gradient when every parameter asks for one.

    `CLIPSegForImageSegmentation.forward` runs both CLIP encoders under `torch.no_grad()` (4.31.0 as pinned by
    the authors, and the installed version, whose real class runs here at a tiny random configuration). An
    optimiser leaves parameters without a gradient as they are, weight decay included.

    Returns
    -------
    DataFrame
        One row per part: `part`, `tensors`, `requires_grad` (tensors that ask for one), `with_gradient`
        (tensors that have a gradient other than zero after a backward pass), `moved` (tensors changed by one
        AdamW step at the paper's settings).
    """
    import torch
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config=text
        | {
            "vocab_size": 64,
            "max_position_embeddings": 8,
            "bos_token_id": 0,
            "eos_token_id": 63,
            "pad_token_id": 1,
        },
        vision_config=text | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        extract_layers=[0, 1],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPSegForImageSegmentation(config).train()
        model.requires_grad_(True)
        pictures, words = torch.randn(2, 3, 32, 32), torch.tensor([[1, 2, 63], [3, 4, 63]])
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    logits = model(pixel_values=pictures, input_ids=words).logits
    (logits - 1).square().mean().backward()
    optimiser.step()
    rows = []
    for part in ("clip.vision_model", "clip.text_model", "decoder"):
        tensors = {n: p for n, p in model.named_parameters() if n.startswith(part)}
        rows.append(
            {
                "part": part,
                "tensors": len(tensors),
                "requires_grad": sum(p.requires_grad for p in tensors.values()),
                "with_gradient": sum(p.grad is not None and bool(p.grad.any()) for p in tensors.values()),
                "moved": sum(not torch.equal(p, before[n]) for n, p in tensors.items()),
            }
        )
    return pd.DataFrame(rows)


def one_channel_loss(seed: int = 0) -> pd.DataFrame:
    """Dice + cross entropy of one output channel, as MONAI 1.2.0 had it and as the installed MONAI has it.

    MONAI 1.2.0's `DiceCELoss` always took `torch.nn.CrossEntropyLoss`, which is minus the sum over channels
    of target x log softmax(input). Over one channel the softmax is 1 and its logarithm 0, whatever the
    network says. The installed MONAI keeps that method (`ce`) for several channels and takes binary cross
    entropy for one. Input is what the authors gave it: probabilities (after a sigmoid), here of a random
    network's output.

    Returns
    -------
    DataFrame
        `version`, `dice`, `cross_entropy`, `gradient` (largest absolute derivative of the cross entropy by
        the logits), `total` (weights 1 and 0.2, as in the authors' configurations).
    """
    import monai
    import torch
    from monai.losses import DiceCELoss

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1, 16, 16, generator=generator).requires_grad_()
    target = (torch.rand(2, 1, 16, 16, generator=generator) > 0.5).float()
    loss = DiceCELoss(lambda_dice=1.0, lambda_ce=0.2)
    rows = []
    installed = f"MONAI {monai.__version__}"
    for version, method in (("as in MONAI 1.2.0 (softmax over the channel)", loss.ce), (installed, loss.bce)):
        probabilities = logits.sigmoid()
        dice, entropy = loss.dice(probabilities, target), method(probabilities, target)
        (gradient,) = torch.autograd.grad(entropy, logits, allow_unused=True, retain_graph=True)
        total = dice + 0.2 * entropy
        if method == loss.bce and not torch.isclose(total, loss(probabilities, target)):
            raise RuntimeError(
                f"MONAI {monai.__version__} no longer takes binary cross entropy for one channel"
            )
        rows.append(
            {
                "version": version,
                "dice": dice.item(),
                "cross_entropy": abs(entropy.item()),
                "gradient": 0.0 if gradient is None else gradient.abs().max().item(),
                "total": total.item(),
            }
        )
    return pd.DataFrame(rows)


PHOTO_OF_A_CAT: tuple[int, ...] = (49406, 320, 1125, 539, 320, 2368, 49407)
"""`a photo of a cat` in CLIP's vocabulary: start, five words, end."""


def padding_mask(
    tokens: Sequence[int] = PHOTO_OF_A_CAT, length: int = 77, padded_with: int = 49407
) -> pd.DataFrame:
    """What CRIS's decoder masks when the tokenizer pads with another number than the model looks for.

    CRIS hides from its attention every token equal to 0, which its own tokenizer pads with. The authors'
    pipeline tokenizes with Hugging Face's CLIP tokenizer, which pads with the end-of-text token, 49407. A
    random attention layer shows what then reaches the image.

    Parameters
    ----------
    tokens
        Ids of one prompt, start and end included.
    length
        To which it is padded.
    padded_with
        The tokenizer's padding.

    Returns
    -------
    DataFrame
        One row per mask: `masked where id is`, `tokens`, `padding` (positions), `masked`, `attention on
        padding` (share, of a random `torch.nn.MultiheadAttention`).
    """
    import torch

    ids = torch.full((1, length), padded_with)
    ids[0, : len(tokens)] = torch.tensor(tokens)
    padding = torch.arange(length) >= len(tokens)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
        words, picture = torch.randn(1, length, 32), torch.randn(1, 25, 32)
    masks = {"0 (CRIS)": ids == 0, "padding (attention_mask)": padding[None]}
    rows = []
    for name, mask in masks.items():
        with torch.no_grad():
            weights = attention(picture, words, words, key_padding_mask=mask)[1]
        rows.append(
            {
                "masked where id is": name,
                "tokens": len(tokens),
                "padding": int(padding.sum()),
                "masked": int(mask.sum()),
                "attention on padding": float(weights[..., padding].sum(-1).mean()),
            }
        )
    return pd.DataFrame(rows)


PROMPT_FILES: dict[str, str] = {
    "real": "prompts_camus_val.json",
    "synthetic": "prompts_sdm_val_first600.json",
}
"""Cohort to the file of the authors' prompts."""


def words_of_p6(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """What P6 says that P5 does not, counted in the authors' own prompts.

    Parameters
    ----------
    folder
        With `prompts_camus_val.json` (their validation patients) and `prompts_sdm_val_first600.json` (600
        pairs of their synthetic set).

    Returns
    -------
    DataFrame
        `cohort` (real, synthetic), `pairs`, `says quality`, `says shape` (share of P6 prompts that name it
        and whose P5 does not), `P5`, `P6` (an example).

    Raises
    ------
    PublishedError
        A file is absent or not one of their prompts.
    """
    rows = []
    for cohort, name in PROMPT_FILES.items():
        path = Path(folder) / name
        try:
            entries = json.loads(path.read_text(encoding="utf-8-sig"))
            pairs = [(e["prompts"]["p5"][0], e["prompts"]["p6"][0]) for e in entries]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise PublishedError(
                f"prompts: {path} cannot be read as the authors' prompts ({type(error).__name__}); give the "
                "folder that holds them"
            ) from error
        says = {
            word: float(np.mean([text in p6 and text not in p5 for p5, p6 in pairs]))
            for word, text in (("quality", " image quality"), ("shape", " shape"))
        }
        rows.append(
            {
                "cohort": cohort,
                "pairs": len(pairs),
                "says quality": says["quality"],
                "says shape": says["shape"],
                "P5": pairs[0][0],
                "P6": pairs[0][1],
            }
        )
    return pd.DataFrame(rows)


def hausdorff_unit(scores: pd.DataFrame, side: int = 512) -> dict[str, Any]:
    """What the column `hausdorff` counts, told from its values.

    The squared distance of two pixels is a whole number. And a true mask's area, its share of the image
    (from `dice_of_all_foreground`) times the number of pixels, must be one too: that tells the grid.

    Returns
    -------
    dict
        `hausdorff_whole_squares` (share of values whose (value / 100) squared is a whole number, within
        rounding), `hausdorff_median_px`, `grid_side`, `grid_deviation` (mean distance of the areas from whole
        numbers on a grid of this side), `grid_deviation_352`, `grid_deviation_416` (on the models' input
        sizes; 0.25 is chance).
    """
    pixels = scores["hausdorff"] / 100
    squares = pixels**2
    # values have four decimals after multiplication by 100
    whole = (squares - squares.round()).abs() <= 2 * pixels * 1e-6 + 1e-9
    # float32 in the authors' computation: seven digits
    whole |= (squares - squares.round()).abs() <= 2.4e-7 * squares
    share = true_areas(scores)

    def deviation(width: int) -> float:
        areas = share * width**2
        return float((areas - areas.round()).abs().mean())

    return {
        "hausdorff_whole_squares": float(whole.mean()),
        "hausdorff_median_px": float(pixels.median()),
        "grid_side": side,
        "grid_deviation": deviation(side),
        "grid_deviation_352": deviation(352),
        "grid_deviation_416": deviation(416),
    }


def label_order(labels: np.ndarray) -> dict[int, str]:
    """Which number stands for which structure in a label map, told from the shapes alone.

    The authors' script that splits the synthetic label maps assumes 1 cavity, 2 myocardium, 3 atrium. Which
    order the folder has that it names by default can be settled by running this on its files: the myocardium
    is a horseshoe (fills least of its convex hull); of the two cavities the atrium lies lower in an upright
    image.

    Parameters
    ----------
    labels
        (H, W) whole numbers, 0 background, three others; apex at the top.

    Returns
    -------
    dict
        Label to structure.

    Raises
    ------
    ValueError
        Not three labels besides 0.
    """
    from skimage.measure import regionprops

    regions = {region.label: region for region in regionprops(np.asarray(labels).astype(int))}
    if len(regions) != len(STRUCTURES):
        raise ValueError(f"labels: {len(regions)} labels besides 0, not {len(STRUCTURES)}: {sorted(regions)}")
    wall = min(regions, key=lambda value: regions[value].solidity)
    upper, lower = sorted((v for v in regions if v != wall), key=lambda v: regions[v].centroid[0])
    return {upper: STRUCTURES[1], wall: STRUCTURES[2], lower: STRUCTURES[3]}


def label_order_demo(patients: int = 3) -> pd.DataFrame:
    """`label_order` on phantom masks whose numbers were exchanged: does it find out?

    Returns
    -------
    DataFrame
        One row per order: `1`, `2`, `3` (the structure that the number was given to), `masks` (both views and
        phases of so many phantom patients), `order found` (share of the masks).
    """
    masks = [
        phantom.simulate(phantom.draw_cohort_patient(0, index), view, phase, 0, size=96).labels
        for index in range(patients)
        for view in VIEWS
        for phase in PHASES
    ]
    names = list(STRUCTURES.values())
    rows = []
    for order in ((1, 2, 3), (2, 1, 3), (1, 3, 2)):
        # structure k of the phantom gets the number order[k - 1]
        given = dict(zip(order, names, strict=True))
        found = [label_order(np.array([0, *order])[mask]) == given for mask in masks]
        rows.append(
            {str(number): given[number] for number in (1, 2, 3)}
            | {"masks": len(masks), "order found": float(np.mean(found))}
        )
    return pd.DataFrame(rows)

"""What the released code computed: one small runnable demonstration for each observation.

The authors released their code, configurations, prompts and scores; without that none of this could be seen.
Each function shows one thing with the library version concerned, or with the smallest equivalent where that
version (Transformers 4.31.0, MONAI 1.2.0) is not the installed one. Where their scripts are meant, the table
of `scores.load_settings` names file and commit. What the recorded scores tell of the code follows below.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from echovlsm import PHASES, STRUCTURES, VIEWS, phantom
from echovlsm.base import figures
from echovlsm.published.headlines import GAIN, HEADLINES, given
from echovlsm.published.statistics import two_trainings


def encoder_gradients() -> pd.DataFrame:
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
    tokens = {"vocab_size": 64, "max_position_embeddings": 8}
    tokens |= {"bos_token_id": 0, "eos_token_id": 63, "pad_token_id": 1}
    config = CLIPSegConfig(
        text_config=text | tokens,
        vision_config=text | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        extract_layers=[0, 1],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPSegForImageSegmentation(config).train()
        model.requires_grad_(True)
        images, words = torch.randn(2, 3, 32, 32), torch.tensor([[1, 2, 63], [3, 4, 63]])
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    logits = model(pixel_values=images, input_ids=words).logits
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


def one_channel_loss() -> pd.DataFrame:
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

    generator = torch.Generator().manual_seed(0)
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
            raise RuntimeError(f"{installed} no longer takes binary cross entropy for one channel")
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


def padding_mask(padded_with: int = 49407) -> pd.DataFrame:
    """What CRIS's decoder masks when the tokenizer pads with another number than the model looks for.

    CRIS hides from its attention every token equal to 0, which its own tokenizer pads with. The authors'
    pipeline tokenizes with Hugging Face's CLIP tokenizer, which pads with the end-of-text token, 49407
    (`padded_with`). A random attention layer shows what then reaches the image.

    Returns
    -------
    DataFrame
        One row per mask: `masked where id is`, `tokens`, `padding` (positions), `masked`, `attention on
        padding` (share, of a random `torch.nn.MultiheadAttention`).
    """
    import torch

    tokens, length = PHOTO_OF_A_CAT, 77
    ids = torch.full((1, length), padded_with)
    ids[0, : len(tokens)] = torch.tensor(tokens)
    padding = torch.arange(length) >= len(tokens)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
        words, image = torch.randn(1, length, 32), torch.randn(1, 25, 32)
    masks = {"0 (CRIS)": ids == 0, "padding (attention_mask)": padding[None]}
    rows = []
    for name, mask in masks.items():
        with torch.no_grad():
            weights = attention(image, words, words, key_padding_mask=mask)[1]
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


def label_order(labels: np.ndarray) -> dict[int, str]:
    """Which number stands for which structure in a label map, told from the shapes alone.

    The authors' script that splits the synthetic label maps assumes 1 cavity, 2 myocardium, 3 atrium; run
    this on the files of its folder to see which order they have. The myocardium is a horseshoe (fills least
    of its convex hull); of the two cavities the atrium lies lower in an upright image.

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


# -- what the recorded scores tell ---------------------------------------------------------------------


def trainings_apart(spread: pd.DataFrame) -> pd.DataFrame:
    """How far two CLIPSeg trainings lie apart (`two_trainings`): one row per strategy and per test."""
    sets = {"real": ["real"], "synthetic": ["synthetic"], "PT-FT": ["synth-PT:real-FT"]}
    sets |= {f"both of {name}": [test["a"], test["b"]] for name, test in HEADLINES.items()}
    return pd.DataFrame({name: two_trainings(spread, strategies) for name, strategies in sets.items()}).T


def apart_text(apart: pd.DataFrame, head: pd.DataFrame) -> str:
    """The gain beside the difference of two trainings, in words.

    `apart` is of `trainings_apart`, `head` of `headline_tests`.
    """
    claimed, gain = head.loc[head["test"] == GAIN, ["given_difference", "difference"]].iloc[0]
    leaning = apart[~apart.index.str.startswith("both")].query("p_mean < 0.05")
    leans = "".join(
        f" The rows of {name} lean to one side (mean {row['mean']:+.2f}, t-test over "
        f"cells p = {row['p_mean']:.3f}), as another setting would make them."
        for name, row in leaning.iterrows()
    )
    row = apart.loc[f"both of {GAIN}"]
    return (
        "Over the two strategies that the gain compares, the two trainings differ by "
        f"{row['rms']:.2f} points (root mean square; {row['rms_low']:.2f} to {row['rms_high']:.2f}). "
        f"Twice that is the limit, {row['limit']:.2f}. The gain is {claimed:+.2f} as given and {gain:+.2f} "
        f"recomputed: {gain / row['limit']:.2f} of the limit.{leans}"
    )


def plot_two_trainings(spread: pd.DataFrame) -> Figure:
    """Unfrozen minus frozen CLIPSeg, prompts with words: neither training touched the encoders.

    `spread` is of `statistics.encoder_rows`; the gain that the paper claims is drawn beside it.
    """
    claimed, _ = given(GAIN)
    twice = spread[(spread["model"] == "CLIPSeg") & (spread["prompt"] != "P0")]
    figure, axes = plt.subplots(figsize=(7.5, 3))
    order = list(dict.fromkeys(twice["strategy"]))
    for row, strategy in enumerate(order):
        values = twice.loc[twice["strategy"] == strategy, "difference"]
        colour = figures.STRATEGY_COLOURS[strategy]
        axes.plot(values, np.linspace(row - 0.15, row + 0.15, len(values)), "o", color=colour)
    axes.axvline(claimed, color="#333333", linestyle="--", label="± claimed gain\nof PT-FT")
    axes.axvline(-claimed, color="#333333", linestyle="--")
    axes.axvline(0, color="#333333", linewidth=0.8)
    label = "two CLIPSeg trainings (settings may differ), “unfrozen” − “frozen”, points of Dice"
    axes.set(xlabel=label, ylim=(-0.5, len(order) - 0.5))
    names = [name.replace("synth-PT:real-FT", "PT-FT") for name in order]
    axes.set(yticks=range(len(order)), yticklabels=names)
    figure.legend(loc="outside right upper", fontsize=8)
    compared = twice.loc[twice["strategy"] != "synthetic", "difference"].abs()
    larger = f"{(compared > claimed).sum()} of {len(compared)}"
    axes.set_title(f"{larger} cells (real, PT-FT) lie more than {claimed} apart")
    return figure


def grid_text(facts: Mapping[str, float]) -> str:
    """On which grid the masks were scored, in words."""
    text = (
        "{hausdorff_whole_squares:.1%} of the values, divided by 100, are roots of whole numbers; the median "
        "is {hausdorff_median_px:.0f} pixels. On a grid of side {grid_side:.0f} the true masks' areas lie "
        "{grid_deviation:.3f} from whole numbers, on average; on the models' input sizes "
        "{grid_deviation_352:.2f} and {grid_deviation_416:.2f}, where chance gives 0.25. {so}"
    )
    at_512 = facts["grid_deviation"] < 0.05 < facts["grid_deviation_352"]
    so = "So they were scored at 512 × 512, the size that the paper states." if at_512 else ""
    return text.format(**facts, so=so)


def empty_prompt_text(rows: pd.DataFrame) -> str:
    """How near the released runs with the empty prompt come to the exact union, in words."""
    span = rows.groupby("model")[["dice", "correlation"]].agg(["min", "max"])
    text = "{0} scores {1:.1f} to {2:.1f} (correlation with the union's Dice {3:.2f} to {4:.2f})"
    told = "; ".join(text.format(name, *row) for name, *row in span.itertuples())
    return f"The exact union would score {rows['union'].iloc[0]:.1f}. {told}."

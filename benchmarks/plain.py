"""The plain ways: what one writes with Transformers, PyTorch, MONAI and diffusers when speed is no concern.

Each triplet of image, prompt and mask by itself, each mask by itself, every step of the process. They work
on the same weights as the package's own ways, so that results can be held against each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from echovlsm import STRUCTURES
from echovlsm.cohort.images import load_image, load_labels, resize_image, resize_labels
from echovlsm.models.cris import CRIS
from echovlsm.models.cris_parts import pixel_positions, word_positions
from echovlsm.prompts.shapes import name_shape
from echovlsm.prompts.templates import LEVELS, VARIANTS, make_prompt
from echovlsm.training.augmentation import Change

# -- CLIPSeg --------------------------------------------------------------------------------------------


def clipseg_frozen(segmenter: nn.Module, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (N, H, W) by Transformers' own forward, which runs both encoders without gradients."""
    return segmenter(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits


def clipseg_unfrozen(segmenter: nn.Module, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The same with gradients: the steps of Transformers' forward without its ``no_grad``."""
    seen = segmenter.clip.get_image_features(
        pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True
    )
    activations = [seen.hidden_states[layer + 1] for layer in segmenter.extract_layers]
    read = segmenter.clip.get_text_features(ids, attention_mask=mask).pooler_output
    return segmenter.decoder(activations, read).logits


def training_step(
    forward: Any,
    segmenter: nn.Module,
    optimiser: torch.optim.Optimizer,
    triplets: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]],
    loss: nn.Module,
    clip: float,
) -> tuple[float, Tensor]:
    """One step on all `triplets`, one after the other; their mean loss, and the logits (N, H, W).

    A triplet is normalised pixels (1, 3, H, W), ids and attention mask (1, L), truth (1, H, W).
    """
    optimiser.zero_grad()
    triplets = list(triplets)
    total, found = 0.0, []
    for pixels, ids, mask, truth in triplets:
        logits = forward(segmenter, pixels, ids, mask)
        value = loss(logits[:, None], truth[:, None]) / len(triplets)
        value.backward()
        total += float(value.detach())
        found.append(logits.detach())
    nn.utils.clip_grad_norm_(segmenter.parameters(), clip)
    optimiser.step()
    return total, torch.cat(found)


class Triplets(Dataset):
    """One triplet an item, as the paper's code has them: read, resized and tokenised each time.

    Parameters
    ----------
    part
        The images and prompts of the package's own `Triplets`.
    model
        Gives tokenizer, normalisation and longest prompt, to which each is padded.
    """

    def __init__(self, part: Any, model: nn.Module) -> None:
        self.part, self.model = part, model

    def __len__(self) -> int:
        return len(STRUCTURES) * len(self.part)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised pixels (3, H, W), ids and attention mask (L,), truth float32 (H, W)."""
        index, place = divmod(number, len(STRUCTURES))
        row, size = self.part.frames.iloc[index], self.model.image_size
        pixels = self.model.normalise(resize_image(load_image(row), size)[None])[0]
        truth = resize_labels(load_labels(row), size) == list(STRUCTURES)[place]
        text = self.part.texts_of(index)[place]
        words = self.model.tokenizer(
            text, padding="max_length", max_length=self.model.longest, return_tensors="pt"
        )
        return pixels, words["input_ids"][0], words["attention_mask"][0], truth.float()


def epoch(
    forward: Any,
    segmenter: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]],
    loss: nn.Module,
    clip: float,
    at_a_time: int = 1,
) -> float:
    """A step for each batch of triplets, so many `at_a_time` in the network; the mean loss of a triplet."""
    segmenter.train()
    total, count = 0.0, 0
    for pixels, ids, mask, truth in batches:
        optimiser.zero_grad()
        parts = (values.split(at_a_time) for values in (pixels, ids, mask, truth))
        for *inputs, masks in zip(*parts, strict=True):
            value = loss(forward(segmenter, *inputs)[:, None], masks[:, None]) * len(masks) / len(pixels)
            value.backward()
            total += float(value.detach()) * len(pixels)
        nn.utils.clip_grad_norm_(segmenter.parameters(), clip)
        optimiser.step()
        count += len(pixels)
    return total / count


# -- CRIS -----------------------------------------------------------------------------------------------


def cris(model: CRIS, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (N, H, W) of N triplets as the original computes them, stage by stage."""
    maps = _see(model.backbone.visual, pixels)
    prompt = model.text_features(ids, mask)
    neck = _neck(model.neck, maps, prompt.state)
    mixed = _mix(model.decoder, neck, prompt.words, prompt.padding).reshape(neck.shape)
    logits = _project(model.proj, mixed, prompt.state)
    return functional.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def _see(visual: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    for number in (1, 2, 3):
        convolution, norm = (getattr(visual, f"{name}{number}") for name in ("conv", "bn"))
        x = functional.relu(norm(convolution(x)))
    eighth = visual.layer2(visual.layer1(visual.avgpool(x)))
    sixteenth = visual.layer3(eighth)
    x, pool = visual.layer4(sixteenth), visual.attnpool
    size, places = x.shape[-2:], pool.positional_embedding[1:]
    places = places.T.unflatten(1, (round(len(places) ** 0.5), -1))[None]
    places = functional.interpolate(places, size=size, mode="bicubic", align_corners=False)
    seats = (x + places).flatten(2).transpose(1, 2)
    heads = (
        project(seats).unflatten(-1, (pool.heads, -1)).transpose(1, 2)
        for project in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    mixed = pool.c_proj(mixed).transpose(1, 2).unflatten(2, size)
    return eighth, sixteenth, functional.relu(mixed + pool.connect(x))


def _mix(decoder: nn.Module, x: Tensor, words: Tensor, padding: Tensor) -> Tensor:
    places = pixel_positions(x.shape[1], *x.shape[-2:], device=x.device)
    order = word_positions(words.shape[2], words.shape[1], words.device)
    x = x.flatten(2).transpose(1, 2)
    for layer in decoder.layers:
        y = layer.norm1(x)
        seat = y + places
        y = layer.self_attn(seat, seat, y, need_weights=False)[0]
        x = x + layer.self_attn_norm(y)
        y = layer.norm2(x) + places
        y = layer.multihead_attn(y, words + order, words, key_padding_mask=padding, need_weights=False)[0]
        x = x + layer.cross_attn_norm(y)
        x = x + layer.ffn(layer.norm3(x))
    return decoder.norm(x).transpose(1, 2)


def _neck(neck: nn.Module, maps: tuple[Tensor, ...], state: Tensor) -> Tensor:
    eighth, sixteenth, last = maps
    state = neck.txt_proj(state)[..., None, None]
    f5 = neck.norm_layer(neck.f1_v_proj(last) * state)
    f4 = neck.f2_v_proj(sixteenth)
    f4 = neck.f2_cat(torch.cat([f4, _double(f5)], dim=1))
    f3 = functional.avg_pool2d(neck.f3_v_proj(eighth), 2, 2)
    f3 = neck.f3_cat(torch.cat([f3, f4], dim=1))
    fused = [neck.f4_proj3(f3), neck.f4_proj4(f4), _double(neck.f4_proj5(f5))]
    return neck.coordconv(neck.aggr(torch.cat(fused, dim=1)))


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear")


def _project(projector: nn.Module, x: Tensor, state: Tensor) -> Tensor:
    x = projector.vis(x)
    count, channels, height, width = x.shape
    word = projector.txt(state)
    weight, bias = word[:, :-1], word[:, -1]
    weight = weight.reshape(count, channels, projector.kernel, projector.kernel)
    x = x.reshape(1, count * channels, height, width)
    padding = projector.kernel // 2
    return functional.conv2d(x, weight, padding=padding, groups=count, bias=bias).transpose(0, 1)


# -- scores ---------------------------------------------------------------------------------------------


def monai_scores(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Dice, IoU, Hausdorff, its 95th percentile and mean surface distance by MONAI, float64 (N, 5).

    One pair of masks (bool, H x W) at a time; distances in pixels.
    """
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
    )

    found = []
    for pair in pairs:
        batch = [torch.from_numpy(mask)[None, None].double() for mask in pair]
        measures = (
            compute_dice(*batch),
            compute_iou(*batch),
            compute_hausdorff_distance(*batch, include_background=True),
            compute_hausdorff_distance(*batch, include_background=True, percentile=95),
            compute_average_surface_distance(*batch, include_background=True, symmetric=True),
        )
        found.append([float(value) for value in measures])
    return np.array(found)


# -- prompts --------------------------------------------------------------------------------------------


def prompts(frames: pd.DataFrame) -> pd.DataFrame:
    """Every prompt of every structure, image by image, shapes read off the masks."""
    rows = []
    for row in frames.itertuples():
        labels = load_labels(row)
        for value, structure in STRUCTURES.items():
            shape = name_shape(labels == value, (row.spacing_y, row.spacing_x))
            known = {name: getattr(row, name) for name in ("view", "phase", "sex", "age", "quality")}
            for level in LEVELS:
                for variant in VARIANTS:
                    text = make_prompt(structure, level, variant, **known, shape=shape)
                    rows.append((row.patient, row.view, row.phase, structure, level, variant, text))
    names = ["patient", "view", "phase", "structure", "level", "variant", "text"]
    return pd.DataFrame(rows, columns=names)


# -- diffusion ------------------------------------------------------------------------------------------


@torch.no_grad()
def ddpm(model: nn.Module, schedule: Any, maps: np.ndarray, seed: int, calls: int) -> np.ndarray:
    """The first `calls` of the 1000 steps by which DDPM draws images of label maps, as they look then.

    The network reads the label map anew in every step.
    """
    from echovlsm.synthesis.process import TRAINING_STEPS, make_scheduler, to_images

    solver = make_scheduler("ddpm", schedule)
    solver.set_timesteps(TRAINING_STEPS)
    generator = torch.Generator().manual_seed(seed)
    size = model.config.image_size
    labels = torch.as_tensor(maps).long()
    x = torch.randn((len(maps), model.config.in_channels, size, size), generator=generator)
    for t in solver.timesteps[:calls]:
        output = model(x, torch.full((len(x),), float(t)), labels)
        x = solver.step(output, t, x, generator=generator).prev_sample
    return to_images(x)


# -- augmentation ---------------------------------------------------------------------------------------


def changed_by_monai(image: Tensor, labels: Tensor, change: Change) -> tuple[Tensor, Tensor]:
    """One image and its labels, uint8 (H, W) both, by MONAI's transforms: MetaTensors."""
    from monai.transforms import AdjustContrast, Affine, ScaleIntensity

    moved = {"rotate_params": change.rotation, "shear_params": change.shear, "padding_mode": "zeros"}
    moved |= {"translate_params": change.shift, "scale_params": change.scale, "image_only": True}
    grey = Affine(**moved, mode="bilinear")(image[None].float())
    grey = ScaleIntensity(minv=None, maxv=None, factor=change.factor - 1)(AdjustContrast(change.gamma)(grey))
    found = Affine(**moved, mode="nearest")(labels[None].float())
    image, labels = (values[0].clamp(0, 255).round().to(torch.uint8) for values in (grey, found))
    return image, labels

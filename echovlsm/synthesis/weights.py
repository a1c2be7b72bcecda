"""Weights of the semantic diffusion model on disk: our own folders, and checkpoints of the original code.

A folder holds `config.json` (fields of `SemanticUNetConfig`), `model.safetensors` (the original's names) and
diffusers' `scheduler_config.json` (schedule, prediction type, variance).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echovlsm.base import files, paths
from echovlsm.synthesis.process import noise_schedule
from echovlsm.synthesis.unet import SemanticUNet, SemanticUNetConfig


class WeightsError(ValueError):
    """Weights or a configuration that cannot be used; the message names the file and the remedy."""


def config_of(fields: dict[str, Any], source: str | Path = "config.json") -> SemanticUNetConfig:
    """A configuration from the fields of a `config.json`; WeightsError for unknown ones, or another model."""
    known = {field.name for field in dataclasses.fields(SemanticUNetConfig)}
    unknown = sorted(set(fields) - known)
    if unknown or fields.get("model", "SemanticDiffusionUNet") != "SemanticDiffusionUNet":
        what = f"unknown field {unknown[0]!r}" if unknown else f"describes a {fields['model']!r}"
        raise WeightsError(f"{source}: {what}; a SemanticDiffusionUNet has {', '.join(sorted(known))}")
    try:
        return SemanticUNetConfig(**fields)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{source}: {error}") from error


def load_state(model: SemanticUNet, tensors: dict[str, Tensor], source: str | Path) -> SemanticUNet:
    """Load a state dict by the original's names, also with a ``module.`` prefix; all or WeightsError."""
    if not isinstance(tensors, dict) or not all(torch.is_tensor(value) for value in tensors.values()):
        raise WeightsError(f"{source}: holds more than a state dict; give the file of the (averaged) weights")
    tensors = {key.removeprefix("module."): value.float() for key, value in tensors.items()}
    own = model.state_dict()
    absent = [key for key in own if key not in tensors]
    extra = [key for key in tensors if key not in own]
    other = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    if absent or extra or other:
        first = (absent + extra + other)[0]
        shapes = [tuple(found[first].shape) if first in found else "none" for found in (tensors, own)]
        field = _wrong_field(model.config, own, tensors)
        raise WeightsError(
            f"{source}: {field}{len(absent)} tensors are missing, {len(extra)} unknown, {len(other)} of "
            f"another shape (first: {first}, {shapes[0]} for {shapes[1]}); give the configuration that the "
            "weights were made with"
        )
    model.load_state_dict(tensors)
    return model.eval()


def _wrong_field(config: SemanticUNetConfig, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """Which one field of a configuration keeps weights from fitting, and both its values; "" where none does.

    Each whole number of the configuration is changed as the sizes of tensors differ.
    """
    sizes = {
        pair
        for name in own.keys() & tensors.keys()
        for pair in zip(own[name].shape, tensors[name].shape, strict=False)
        if pair[0] != pair[1]
    }
    found = {name: value.shape for name, value in tensors.items()}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, bool):
            others = {not value}
        elif isinstance(value, int):
            others = {value + there - here for here, there in sizes} | {value - 1, value + 1}
            others |= {value * there // here for here, there in sizes}
        else:
            others = set()
        # a field of a few, such as blocks a level, is not tried at hundreds
        for other in sorted(number for number in others if number is False or 0 < number <= 4 * value + 8):
            with contextlib.suppress(ValueError), torch.device("meta"):  # fields that do not fit each other
                other_model = SemanticUNet(dataclasses.replace(config, **{name: other}))
                if {key: tensor.shape for key, tensor in other_model.state_dict().items()} == found:
                    return f"the configuration has {name} {value}, these weights have {other}; "
    return ""


def load_checkpoint(file: str | Path, config: SemanticUNetConfig) -> SemanticUNet:
    """A network from a checkpoint of the original code: a pickled state dict, read with ``weights_only``.

    WeightsError where the file is missing, holds more than tensors, or tensors of another shape.
    """
    file = Path(file)
    if not file.is_file():
        raise WeightsError(f"{file}: no such checkpoint; give the file of the weights")
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(
            f"{file}: is no plain state dict ({told}); fetch it again, or save its tensors alone"
        ) from error
    return load_state(SemanticUNet(config), tensors, file)


def load_denoiser(weights: str | Path) -> tuple[SemanticUNet, Any]:
    """A trained network in eval mode and its noise schedule, from a folder of `save_denoiser`.

    WeightsError where a file is missing or broken, a field is unknown, or the tensors are of another shape.
    """
    from diffusers import DDPMScheduler
    from safetensors.torch import load_file

    folder = paths.resolve(weights)
    config_file, schedule_file, tensor_file = (
        folder / name for name in ("config.json", "scheduler_config.json", "model.safetensors")
    )
    for file in (config_file, schedule_file, tensor_file):
        if not file.is_file():
            raise WeightsError(f"{folder}: has no {file.name}; give a folder that save_denoiser wrote")
    remedy = "fetch or train the weights again"
    config = config_of(files.read_json(config_file, WeightsError, remedy), config_file)
    settings = files.read_json(schedule_file, WeightsError, remedy)
    try:
        tensors = load_file(tensor_file)
    except Exception as error:
        raise WeightsError(f"{tensor_file}: cannot be read ({error}); {remedy}") from error
    model = load_state(SemanticUNet(config), tensors, tensor_file)
    try:
        schedule = DDPMScheduler.from_config(settings)
    except Exception as error:  # values of another type or size
        raise WeightsError(f"{schedule_file}: no noise schedule ({error}); {remedy}") from error
    if (schedule.config.variance_type == "learned_range") != config.learned_variance:
        raise WeightsError(
            f"{schedule_file}: variance_type {schedule.config.variance_type!r} does not fit the "
            f"{config.out_channels} output channels of config.json"
        )
    return model, schedule


def save_denoiser(
    model: SemanticUNet,
    prediction: str,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    trained_on: Mapping[str, str] | None = None,
) -> None:
    """Write the files of a weights folder, each whole, the weights last.

    `trained_on` (name, kind and hash of the training images) becomes `trained_on.json`, so that a reader can
    tell whether an image was seen in training.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    schedule = dict(noise_schedule(prediction, model.config.learned_variance).config)
    kept = {key: value for key, value in schedule.items() if not key.startswith("_")}
    texts = {"scheduler_config.json": kept, "config.json": dataclasses.asdict(model.config)}
    if trained_on:
        texts["trained_on.json"] = dict(trained_on)
    for name, values in texts.items():
        with files.appearing(folder / name) as partial:
            partial.write_text(json.dumps(values, indent=1) + "\n")
    tensors = {key: value.to(dtype).contiguous().cpu() for key, value in model.state_dict().items()}
    with files.appearing(folder / "model.safetensors") as partial:
        save_file(tensors, partial)


def trained_on(weights: str | Path) -> dict[str, str]:
    """Name, kind and hash of the cohort that weights were trained on; empty where the folder does not say."""
    file = paths.resolve(weights) / "trained_on.json"
    return json.loads(file.read_text()) if file.is_file() else {}

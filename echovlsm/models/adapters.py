"""LoRA (Hu et al., ICLR 2022) for the encoders: frozen but for small low-rank additions, through PEFT.

Beyond the paper, which trains the encoders whole or not at all. A model's `adapted` says which of its layers
are adapted; what follows the encoders learns as a whole. `merge_lora` adds the adapters to the weights, after
which the model is an ordinary one for `save_pretrained` and `models.load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from echovlsm.models.common import MODELS, ModelError

if TYPE_CHECKING:
    import pandas as pd


def add_lora(
    model: nn.Module, rank: int = 8, alpha: float = 16, dropout: float = 0.0, seed: int = 0
) -> nn.Module:
    """Freeze the encoders of `model` and put trainable low-rank adapters into them, in place.

    Parameters
    ----------
    model
        A vision-language model, in any encoder mode; afterwards its ``encoders`` is ``lora``.
    rank
        Rank of each addition B A.
    alpha
        The addition is scaled by alpha / rank.
    dropout
        Share of an adapter's inputs that is dropped in training.
    seed
        Seed of A's random start; B starts at zero, so that the outputs are unchanged at first.

    Returns
    -------
    Module
        `model`.

    Raises
    ------
    ModelError
        The model has adapters already or is of a kind without encoders, or a setting is out of range.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise ModelError(f"rank: {rank} is not a rank of at least 1")
    if not 0 <= dropout < 1:
        raise ModelError(f"dropout: {dropout} is not a share from 0 to below 1")
    encoders = encoders_of(model)
    if has_lora(model):
        raise ModelError("encoders: the model has adapters already; call merge_lora first")
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=model.adapted, bias="none"
    )
    encoders.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, encoders)
    model.encoders = "lora"
    model.train(model.training)
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the adapters to the weights they adapt and take them out, in place; outputs stay as they are.

    Afterwards ``encoders`` is ``frozen``, the state dict has the names it had before `add_lora`, and
    `save_pretrained` writes a plain folder. A model without adapters is returned as it is.

    Raises
    ------
    ModelError
        An adapter holds NaN or infinity.
    """
    from peft.tuners.lora import LoraLayer

    if not has_lora(model):
        return model
    encoders = encoders_of(model)
    adapted = {name: module for name, module in encoders.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in adapted.items():
        if not all(bool(value.isfinite().all()) for value in layer.parameters()):
            raise ModelError(f"adapter: {name} holds NaN or infinity; the training diverged")
    for name, layer in adapted.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(encoders.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(encoders, "peft_config"):
        del encoders.peft_config
    model.encoders = "frozen"
    model.train(model.training)
    return model


def has_lora(model: nn.Module) -> bool:
    """Whether there are adapters in `model`."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def trainable_table(model: nn.Module) -> pd.DataFrame:
    """How many of a model's parameters learn.

    Returns
    -------
    DataFrame
        One row a part of ``model.parts()``, and ``adapters`` (which the encoders' rows count as well) where
        there are any: `part`, `parameters`, `trained`, `share` (trained / parameters, 0-1).
    """
    import pandas as pd

    parts = {name: list(module.parameters()) for name, module in model.parts().items()}
    adapters = [value for name, value in model.named_parameters() if ".lora_" in name]
    if adapters:
        parts = {"adapters": adapters} | parts
    rows = []
    for name, values in parts.items():
        total = sum(value.numel() for value in values)
        trained = sum(value.numel() for value in values if value.requires_grad)
        rows.append((name, total, trained, trained / total if total else 0.0))
    table = pd.DataFrame(rows, columns=["part", "parameters", "trained", "share"])
    return table.sort_values("part", key=lambda names: names == "all", kind="stable", ignore_index=True)


def encoders_of(model: nn.Module) -> nn.Module:
    """The module that holds both encoders.

    Raises
    ------
    ModelError
        The model has none.
    """
    if not hasattr(model, "backbone"):
        name = getattr(model, "name", type(model).__name__)
        raise ModelError(f"encoders: this needs the encoders of {' or '.join(MODELS)}; {name} has none")
    return model.backbone

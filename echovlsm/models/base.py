"""What all vision-language models have: images and prompts in, each encoded once, logits and folders out.

A model of this kind derives from `VisionLanguageModel` and says how it encodes an image and a prompt, how it
decodes the two, and what in it is an encoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from echovlsm.base import files
from echovlsm.models.common import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VisionLanguageModel(nn.Module):
    """A segmentation model with its tokenizer and the normalisation of its images.

    Those that derive from it give ``from_pretrained(weights, encoders)`` (a class method), `backbone`,
    `encode_image`, `text_features` and `decode`. ``save_network(folder)``, which writes the configuration
    and `model.safetensors`, lets them be saved; `adapted` and `_resize` allow LoRA and other sizes.

    Parameters
    ----------
    tokenizer
        The tokenizer that belongs to the text encoder; needed by `tokenize` only.
    image_mean, image_std
        Per-channel normalisation of images scaled to 0-1.
    encoders
        ``frozen`` or ``unfrozen``.
    image_size
        Side in pixels of the square images that the model is meant for.
    longest
        Longest prompt in tokens.
    """

    name: ClassVar[str]
    """The model's name: that of its file."""

    backbone: nn.Module
    """The module that holds both encoders."""

    limit_name: ClassVar[str] = ""
    """What the configuration calls `longest`, for errors."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        encoders: str,
        image_size: int,
        longest: int,
    ) -> None:
        super().__init__()
        self.tokenizer, self.encoders = tokenizer, encoders
        self.image_size, self.longest = image_size, longest
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)

    # -- what derived models say --------------------------------------------------------------------

    def parts(self) -> dict[str, nn.Module]:
        """The model's parts by name, ``all`` among them, for a table of parameters."""
        return {"encoders": self.backbone, "all": self}

    @property
    def settings(self) -> object:
        """What decides what the encoders give, besides weights and code: kept features are found by it."""
        return None

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """All that `decode` needs of B images (B, 3, H, W): tensors (B, ...)."""
        raise NotImplementedError

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """All that `decode` needs of N prompts (N, L): tensors (N, ...)."""
        raise NotImplementedError

    def decode(self, activations: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """Logits (N, h, w) of B images under N = B S prompts, S in a row for each image."""
        raise NotImplementedError

    @property
    def adapted(self) -> str:
        """Pattern of the names of the layers of `backbone` that LoRA adapts."""
        raise ModelError(f"encoders: {self.name} names no layers for adapters; use frozen or unfrozen")

    def _resize(self, image_size: int) -> None:
        raise ModelError(f"image_size: {image_size}; {self.name} works at {self.image_size} pixels only")

    # -- what learns --------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set training mode; of encoders that do not learn whole, only adapters' dropout follows.

        The rest of them stays in eval mode, so that batch normalisation keeps its running statistics.
        """
        super().train(mode)
        if self.encoders != "unfrozen":
            self.backbone.eval()
            for name, module in self.backbone.named_modules():
                if ".lora_dropout." in name:
                    module.train(mode)
        return self

    def encoder_gradients(self) -> contextlib.AbstractContextManager:
        """The context in which encoders compute: without gradients if they are frozen."""
        return torch.no_grad() if self.encoders == "frozen" else contextlib.nullcontext()

    def resize(self, image_size: int) -> Self:
        """Make the model one for square images of side `image_size`, in place.

        Position embeddings are interpolated in every forward pass where a size asks for it; here the
        interpolated ones become the parameters, so that they may learn. The outputs at that size stay what
        they were (but for rounding), and the size is saved with the weights.

        Raises
        ------
        ModelError
            The side does not fit the model.
        """
        if image_size != self.image_size:
            self._resize(image_size)
            self.image_size = image_size
        return self

    # -- inputs -------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both int64 (N, L), padded to the longest text.

        Raises
        ------
        ModelError
            There is no tokenizer, or a text is longer than `longest`: cutting it would drop words silently.
        """
        if self.tokenizer is None:
            kind = type(self).__name__
            raise ModelError(f"tokenizer: this {kind} has none; pass tokenizer= when it is made or loaded")
        encoded = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        if encoded["input_ids"].shape[1] > self.longest:
            limit, text = f"{self.longest} tokens{self.limit_name}", max(texts, key=len)
            raise ModelError(f"prompt: longer than {limit}: {text!r}; shorten it")
        return encoded["input_ids"], encoded["attention_mask"]

    def normalise(self, images: Tensor | np.ndarray) -> Tensor:
        """Grey images uint8 (B, H, W) or colour uint8 (B, 3, H, W) to float32 (B, 3, H, W), normalised."""
        return normalised(images, self.image_mean, self.image_std, self.image_mean.device)

    # -- forward ------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        features: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
        repeats: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Segment what the prompts name.

        Parameters
        ----------
        pixel_values
            Normalised images, float (B, 3, H, W).
        input_ids, attention_mask
            One prompt an image, int64 (B, L), or S prompts an image, (B, S, L): then each image is encoded
            once and each distinct prompt of the batch once.
        features
            What `encode_image` gives for the B images and `text_features` for the B S prompts, where that
            is known: then nothing is encoded.
        repeats
            Which of the B S prompts occur again, where the batch's maker knows: the places of those that are
            unlike one another (D,), and for each prompt which of these it is (B S,), both int64. Otherwise
            they are compared on a processor; elsewhere, where that would wait for the device, each is read.

        Returns
        -------
        Tensor
            Logits at input size, (B, H, W) or (B, S, H, W).

        Raises
        ------
        ModelError
            Images and prompts do not fit each other or the model.
        """
        logits = self.raw_logits(pixel_values, input_ids, attention_mask, features, repeats)
        maps, size = logits.reshape(-1, 1, *logits.shape[-2:]), tuple(pixel_values.shape[-2:])
        if tuple(maps.shape[-2:]) != size:
            maps = self.enlarge(maps, size)
        return maps.reshape(*logits.shape[:-2], *size)

    def raw_logits(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        features: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
        repeats: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As `forward`, but at the size of the decoder's own map: (B, h, w) or (B, S, h, w)."""
        if features is not None:
            return self.decode(*features).unflatten(0, input_ids.shape[:-1])
        if input_ids.shape[0] != pixel_values.shape[0]:
            raise ModelError(f"input_ids: {input_ids.shape[0]} rows for {pixel_values.shape[0]} images")
        activations = self.encode_image(pixel_values)
        words = self.read(input_ids, attention_mask, repeats)
        return self.decode(activations, words).unflatten(0, input_ids.shape[:-1])

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        repeats: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """`text_features` of prompts (..., L), each distinct one encoded once: tensors (N, ...)."""
        length = input_ids.shape[-1]
        ids = input_ids.reshape(-1, length)
        mask = self.mask_of(ids, None if attention_mask is None else attention_mask.reshape(-1, length))
        if repeats is not None:
            distinct, where = repeats
            ids, mask = ids[distinct], mask[distinct]
        elif ids.device.type == "cpu":
            both, where = torch.unique(torch.cat([ids, mask], dim=1), dim=0, return_inverse=True)
            ids, mask = both.split(length, dim=1)
        else:
            return tuple(self.text_features(ids, mask))
        return tuple(value[where] for value in self.text_features(ids, mask))

    def mask_of(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The attention mask, int64 (N, L); without one all tokens of prompts (N, L) count."""
        return torch.ones_like(input_ids) if attention_mask is None else attention_mask

    def enlarge(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (N, 1, h, w) at `size`, by pixel areas."""
        return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    # -- folders ------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, `model.safetensors`, tokenizer and `preprocessor_config.json` into `folder`."""
        from transformers import ViTImageProcessorPil

        folder = Path(folder)
        mean, std = (
            [round(float(value), 6) for value in values.flatten()]
            for values in (self.image_mean, self.image_std)
        )
        size = {"height": self.image_size, "width": self.image_size}
        with files.room(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            ViTImageProcessorPil(size=size, image_mean=mean, image_std=std).save_pretrained(folder)
            self.save_network(folder)


def normalised(
    images: Tensor | np.ndarray, mean: Tensor | float, std: Tensor | float, device: torch.device
) -> Tensor:
    """Images uint8 (B, H, W) or (B, 3, H, W) scaled to 0-1, less `mean`, by `std`: float32 (B, 3, H, W)."""
    values = torch.as_tensor(images).to(device)
    if values.ndim == 3:
        values = values[:, None].expand(-1, 3, -1, -1)
    return ((values.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def preprocessing(saved: Mapping[str, Any]) -> dict[str, Any]:
    """`image_mean`, `image_std` and `image_size` as far as a `preprocessor_config.json` names them."""
    found = {name: saved[name] for name in ("image_mean", "image_std") if name in saved}
    side = saved.get("size")
    side = side.get("height", side.get("shortest_edge")) if isinstance(side, dict) else side
    return found | ({"image_size": int(side)} if side else {})


# -- position embeddings --------------------------------------------------------------------------------


def check_side(name: str, image_size: int, step: int, what: str = "sides") -> None:
    """Raise ModelError for a side that is no multiple of `step`, the pixels between two positions."""
    if image_size < step or image_size % step:
        raise ModelError(f"image_size: {image_size}; this {name} needs {what} that are multiples of {step}")


@lru_cache(maxsize=16)
def _weights_of_places(grid: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """What each place of a grid adds to each of `size` places, bicubic: float32 (h w, grid ** 2)."""
    with torch.inference_mode(False), torch.no_grad():
        each = torch.eye(grid**2).unflatten(1, (grid, grid))[:, None]
        found = functional.interpolate(each, size=size, mode="bicubic", align_corners=False).flatten(1).T
        return found.to(device)


def map_of_positions(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """CLIP's position embedding (1 + g * g, C), its first row left out, as a map (C, h, w); bicubic."""
    grid = round((embedding.shape[0] - 1) ** 0.5)
    places = embedding[1:]
    if size != (grid, grid):  # as a product: PyTorch is slow at interpolating many channels
        places = _weights_of_places(grid, size, places.device).to(places) @ places
    return places.T.unflatten(1, size)


def resize_positions(embedding: Tensor, grid: int) -> Tensor:
    """Position embedding (1 + g * g, C) for `grid` x `grid` places; the class token's row stays."""
    places = map_of_positions(embedding, (grid, grid))
    return torch.cat([embedding[:1], places.flatten(1).T]).contiguous()

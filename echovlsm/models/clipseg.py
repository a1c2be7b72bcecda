"""CLIPSeg (Lüddecke & Ecker, CVPR 2022) over Transformers' implementation, with encoders that can learn.

Transformers' ``CLIPSegForImageSegmentation.forward`` runs both CLIP encoders under ``torch.no_grad``,
so setting ``requires_grad`` on them trains nothing. The forward pass here calls the same submodules with
the same arguments and leaves gradients on where they are wanted: in eval mode the logits are bit-equal to
Transformers' own.

A picture is encoded once, however many structures are asked of it (see `CLIPSeg.forward`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, CLIPSegConfig, CLIPSegForImageSegmentation, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from echovlsm.base import files, paths
from echovlsm.models.common import ModelError

transformers_logging.disable_progress_bar()  # files are local and small; the bars only litter notebooks

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)


class CLIPSeg(nn.Module):
    """CLIPSeg with its tokenizer and picture normalisation.

    Parameters
    ----------
    segmenter
        Transformers' model; its weights are used as they are.
    tokenizer
        The tokenizer that belongs to the text encoder.
    image_mean, image_std
        Per-channel normalisation of pictures scaled to 0-1 (CLIPSeg: ImageNet's).
    encoders
        ``frozen`` or ``unfrozen``.
    image_size
        Side in pixels of the square pictures that the model is meant for; by default the one that its
        position embeddings were made for. rd64-refined was made at 224 and is used at 352, with embeddings
        interpolated.
    """

    name = "clipseg"

    def __init__(
        self,
        segmenter: CLIPSegForImageSegmentation,
        tokenizer: PreTrainedTokenizerBase,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        encoders: str = "unfrozen",
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size = image_size or int(segmenter.config.vision_config.image_size)
        self.segmenter = segmenter
        self.tokenizer = tokenizer
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)
        self.encoders = encoders
        self._set_trainable()

    # -- loading and saving -------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, weights: str | Path, encoders: str = "unfrozen") -> CLIPSeg:
        """Load from a Hugging Face folder or hub id; pickled weights are only read with ``weights_only``.

        Raises
        ------
        ModelError
            The folder is missing, is no CLIPSeg folder, lacks weights, or the hub cannot be reached.
        """
        folder, weights = paths.resolve(weights), str(weights)
        if folder.is_dir():
            weights = str(folder)
            if not (folder / "config.json").is_file():
                raise ModelError(
                    f"weights: {weights} has no config.json; give a folder in Hugging Face layout"
                )
        elif weights.startswith((".", "/", "~", "data/", "runs/")) or weights.count("/") > 1:
            raise ModelError(f"weights: the folder {weights} does not exist; give one that does, or a hub id")
        try:
            config = CLIPSegConfig.from_pretrained(weights)
            if config.model_type != "clipseg":
                raise ModelError(
                    f"weights: {weights} holds a {config.model_type!r} model, not CLIPSeg; name that model"
                )
            segmenter, report = CLIPSegForImageSegmentation.from_pretrained(
                weights,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # only so that the error below can name them
            )
            tokenizer = AutoTokenizer.from_pretrained(weights, trust_remote_code=False)
        except ModelError:
            raise
        except Exception as error:  # a broken folder raises a dozen kinds
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"weights: cannot load {weights!r}: {told.rstrip('.')}. Give a whole folder that holds "
                "config.json, model.safetensors and the tokenizer, or go online."
            ) from error
        absent = [key for key in report["missing_keys"] if not key.endswith("position_ids")]
        if absent:
            raise ModelError(
                f"weights: {weights} lacks {len(absent)} tensors, the first is {absent[0]}; copy it again"
            )
        if other := sorted(report["mismatched_keys"]):
            name, there, wanted = other[0]
            raise ModelError(
                f"weights: {weights} does not fit its config.json: {len(other)} tensors of "
                f"another shape, the first is {name} {tuple(there)} for {tuple(wanted)}; give the "
                "configuration that the weights were made with"
            )
        if strange := sorted(k for k in report["unexpected_keys"] if not k.endswith("position_ids")):
            raise ModelError(
                f"weights: {weights} has {len(strange)} tensors that its config.json has no place for, the "
                f"first is {strange[0]}; give the configuration that the weights were made with"
            )
        mean, std, size = _read_preprocessing(weights, config.vision_config.image_size)
        return cls(segmenter, tokenizer, mean, std, encoders, size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, `model.safetensors`, tokenizer and `preprocessor_config.json` into `folder`."""
        with files.room(folder):
            self.segmenter.save_pretrained(folder, safe_serialization=True)
            self.tokenizer.save_pretrained(folder)
            _write_normalisation(folder, self.image_size, self.image_mean.flatten(), self.image_std.flatten())

    # -- what learns --------------------------------------------------------------------------------

    def _set_trainable(self) -> None:
        """Mark exactly the parameters that the loss can reach in the chosen encoder mode."""
        config = self.segmenter.config
        self.segmenter.requires_grad_(False)
        self.segmenter.decoder.requires_grad_(True)
        if self.encoders == "unfrozen":
            clip = self.segmenter.clip
            clip.text_model.requires_grad_(True)
            clip.text_projection.requires_grad_(True)
            vision = clip.vision_model
            vision.embeddings.requires_grad_(True)
            vision.pre_layrnorm.requires_grad_(True)
            # Layers behind the last one that feeds the decoder never influence the mask.
            vision.encoder.layers[: max(config.extract_layers) + 1].requires_grad_(True)

    def parts(self) -> dict[str, nn.Module]:
        """The model's parts by name, for a table of parameters."""
        clip = self.segmenter.clip
        text = nn.ModuleList([clip.text_model, clip.text_projection])
        return {
            "image encoder": clip.vision_model,
            "text encoder": text,
            "decoder": self.segmenter.decoder,
            "all": self,
        }

    def train(self, mode: bool = True) -> CLIPSeg:
        """Set training mode; encoders that do not learn as a whole stay in eval mode."""
        super().train(mode)
        if self.encoders != "unfrozen":
            self.segmenter.clip.eval()
        return self

    def _encoder_gradients(self) -> contextlib.AbstractContextManager:
        return torch.no_grad() if self.encoders == "frozen" else contextlib.nullcontext()

    # -- inputs -------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both int64 (N, L), padded to the longest text.

        Raises
        ------
        ModelError
            A text is longer than the text encoder's positions: cutting it would drop words silently.
        """
        limit = self.segmenter.config.text_config.max_position_embeddings
        encoded = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        if encoded["input_ids"].shape[1] > limit:
            longest = max(texts, key=len)
            raise ModelError(f"prompt: longer than {limit} tokens: {longest!r}; shorten it")
        return encoded["input_ids"], encoded["attention_mask"]

    def normalise(self, images: Tensor | np.ndarray) -> Tensor:
        """Grey pictures uint8 (B, H, W) or colour uint8 (B, 3, H, W) to float32 (B, 3, H, W), normalised."""
        values = torch.as_tensor(images).to(self.image_mean.device)
        if values.ndim == 3:
            values = values[:, None].expand(-1, 3, -1, -1)
        return (values.float() / 255 - self.image_mean) / self.image_std

    # -- forward ------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Activations for the decoder: one (B, 1 + patches, width) tensor for each extract layer."""
        height, width = pixel_values.shape[-2:]
        if height != width:
            raise ModelError(
                f"pixel_values: {height} x {width} is not square; CLIPSeg's decoder needs a square"
            )
        vision, wanted = self.segmenter.clip.vision_model, self.segmenter.config.extract_layers
        with self._encoder_gradients():
            x = vision.pre_layrnorm(vision.embeddings(pixel_values, interpolate_pos_encoding=True))
            outputs = []
            for layer in vision.encoder.layers[: max(wanted) + 1]:  # nothing asks for what lies behind
                x = layer(x, attention_mask=None)
                outputs.append(x)
        return tuple(outputs[layer] for layer in wanted)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Conditional embeddings (N, projection_dim) of N prompts (N, L)."""
        with self._encoder_gradients():
            features = self.segmenter.clip.get_text_features(input_ids, attention_mask=attention_mask)
        return features.pooler_output

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """All that `forward` needs of N prompts (N, L): tensors (N, ...)."""
        return (self.encode_text(input_ids, attention_mask),)

    def decode(self, activations: Sequence[Tensor], conditional: Tensor) -> Tensor:
        """Logits (N, h, w) of B pictures under N = B S conditional embeddings, S in a row for each picture.

        What comes before the prompt enters is computed once a picture.
        """
        decoder = self.segmenter.decoder
        each = len(conditional) // len(activations[0])

        def rows(x: Tensor) -> Tensor:
            return x.repeat_interleave(each, dim=0) if each > 1 else x

        x = None
        steps = zip(reversed(activations), decoder.layers, decoder.reduces, strict=True)
        for number, (activation, layer, reduce) in enumerate(steps):
            reduced = reduce(activation)
            if number > decoder.conditional_layer:
                reduced = rows(reduced)
            x = reduced if x is None else reduced + x
            if number == decoder.conditional_layer:
                x = decoder.film_mul(conditional)[:, None] * rows(x) + decoder.film_add(conditional)[:, None]
            x = layer(x, attention_mask=None)
        side = math.isqrt(x.shape[1] - 1)
        places = x[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        return decoder.transposed_convolution(places).squeeze(1)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        features: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> Tensor:
        """Segment what the prompts name.

        Parameters
        ----------
        pixel_values
            Normalised pictures, float (B, 3, H, W), H = W.
        input_ids, attention_mask
            One prompt a picture, int64 (B, L), or S prompts a picture, (B, S, L): then each picture is
            encoded once and each distinct prompt of the batch once.
        features
            What `encode_image` gives for the B pictures and `text_features` for the B S prompts, where that
            is known: then nothing is encoded.

        Returns
        -------
        Tensor
            Logits at input size, (B, H, W) or (B, S, H, W).
        """
        size = pixel_values.shape[-2:]
        if features is not None:
            activations, (conditional,) = features
            return _to_size(self.decode(activations, conditional), size).unflatten(0, input_ids.shape[:-1])
        if input_ids.shape[0] != pixel_values.shape[0]:
            raise ModelError(f"input_ids: {input_ids.shape[0]} rows for {pixel_values.shape[0]} pictures")
        activations = self.encode_image(pixel_values)
        if input_ids.ndim == 2:
            logits = self.decode(activations, self.encode_text(input_ids, attention_mask))
            return _to_size(logits, pixel_values.shape[-2:])
        batch, prompts, length = input_ids.shape
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = torch.cat([input_ids.reshape(-1, length), mask.reshape(-1, length)], dim=1)
        distinct, where = torch.unique(rows, dim=0, return_inverse=True)
        conditional = self.encode_text(distinct[:, :length], distinct[:, length:])[where]
        logits = _to_size(self.decode(activations, conditional), pixel_values.shape[-2:])
        return logits.view(batch, prompts, *logits.shape[-2:])


def _to_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bring (N, h, w) logits to `size`; a no-op when the patch size divides the picture."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits[:, None], size=tuple(size), mode="bilinear", align_corners=False)[
        :, 0
    ]


def _read_preprocessing(weights: str, size: int) -> tuple[Sequence[float], Sequence[float], int]:
    """Mean, sd and side from `preprocessor_config.json`; ImageNet's and `size` where there is none."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        config, _ = BaseImageProcessor.get_image_processor_dict(weights)
    except OSError:
        return IMAGENET_MEAN, IMAGENET_STD, size
    side = config.get("size", size)
    side = side.get("height", side.get("shortest_edge", size)) if isinstance(side, dict) else side
    return config.get("image_mean", IMAGENET_MEAN), config.get("image_std", IMAGENET_STD), int(side)


def _write_normalisation(folder: str | Path, size: int, mean: Tensor, std: Tensor) -> None:
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(
        size={"height": size, "width": size},
        image_mean=[round(float(value), 6) for value in mean],
        image_std=[round(float(value), 6) for value in std],
    )
    processor.save_pretrained(folder)

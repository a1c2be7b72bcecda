"""CLIPSeg (Lüddecke & Ecker, CVPR 2022) over Transformers' implementation, with encoders that can learn.

Transformers' ``CLIPSegForImageSegmentation.forward`` runs both CLIP encoders under ``torch.no_grad``,
so setting ``requires_grad`` on them trains nothing. The forward pass here calls the same submodules with
the same arguments and leaves gradients on where they are wanted: in eval mode the logits are bit-equal to
Transformers' own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPSegConfig, CLIPSegForImageSegmentation, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging as transformers_logging

from echovlsm.models.base import VisionLanguageModel, check_side, preprocessing, resize_positions
from echovlsm.models.common import ModelError
from echovlsm.models.weights import local_folder

transformers_logging.disable_progress_bar()  # files are local and small; the bars only litter notebooks

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)


class CLIPSeg(VisionLanguageModel):
    """CLIPSeg with its tokenizer and the normalisation of its images.

    Parameters
    ----------
    segmenter
        Transformers' model; its weights are used as they are.
    tokenizer
        The tokenizer that belongs to the text encoder.
    image_mean, image_std
        Per-channel normalisation of images scaled to 0-1 (CLIPSeg: ImageNet's).
    encoders
        ``frozen`` or ``unfrozen``.
    image_size
        Side in pixels of the square images that the model is meant for; by default the one that its
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
        config = segmenter.config
        side, longest = config.vision_config.image_size, config.text_config.max_position_embeddings
        super().__init__(tokenizer, image_mean, image_std, encoders, image_size or int(side), longest)
        self.segmenter = segmenter
        self._set_trainable()

    @property
    def backbone(self) -> nn.Module:
        """Both encoders, with their projections."""
        return self.segmenter.clip

    @property
    def settings(self) -> dict[str, object]:
        """Transformers' configuration."""
        return self.segmenter.config.to_dict()

    # -- loading and saving -------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, weights: str | Path, encoders: str = "unfrozen") -> CLIPSeg:
        """Load from a Hugging Face folder or hub id; pickled weights are only read with ``weights_only``.

        Raises
        ------
        ModelError
            The folder is missing, is no CLIPSeg folder, lacks weights, or the hub cannot be reached.
        """
        folder = local_folder(weights)
        weights = str(folder or weights)
        if folder and not (folder / "config.json").is_file():
            raise ModelError(f"weights: {weights} has no config.json; give a folder in Hugging Face layout")
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
        try:
            saved, _ = BaseImageProcessor.get_image_processor_dict(weights)
        except OSError:  # there is none
            saved = {}
        return cls(segmenter, tokenizer, encoders=encoders, **preprocessing(saved))

    def save_network(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`."""
        self.segmenter.save_pretrained(folder, safe_serialization=True)

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

    @property
    def adapted(self) -> str:
        """As in LoRA's paper, query and value projections; of all layers that the mask depends on."""
        seen = "|".join(map(str, range(max(self.segmenter.config.extract_layers) + 1)))
        layers = rf"(text_model\.encoder\.layers\.\d+|vision_model\.encoder\.layers\.({seen}))"
        return rf"{layers}\.self_attn\.[qv]_proj"

    def _resize(self, image_size: int) -> None:
        vision = self.segmenter.clip.vision_model.embeddings
        step = int(vision.patch_size)
        check_side(self.name, image_size, step, f"patches of {step} pixels, so sides")
        old = vision.position_embedding.weight
        positions = resize_positions(old.detach(), image_size // step)
        vision.position_embedding = nn.Embedding.from_pretrained(positions, freeze=not old.requires_grad)
        vision.position_ids = torch.arange(len(positions), device=old.device).expand(1, -1)
        vision.image_size = self.segmenter.config.vision_config.image_size = image_size
        vision.num_patches, vision.num_positions = len(positions) - 1, len(positions)

    # -- forward ------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Activations for the decoder: one (B, 1 + patches, width) tensor for each extract layer."""
        height, width = pixel_values.shape[-2:]
        if height != width:
            raise ModelError(
                f"pixel_values: {height} x {width} is not square; CLIPSeg's decoder needs a square"
            )
        vision, wanted = self.segmenter.clip.vision_model, self.segmenter.config.extract_layers
        with self.encoder_gradients():
            x = vision.pre_layrnorm(vision.embeddings(pixel_values, interpolate_pos_encoding=True))
            outputs = []
            for layer in vision.encoder.layers[: max(wanted) + 1]:  # nothing asks for what lies behind
                x = layer(x, attention_mask=None)
                outputs.append(x)
        return tuple(outputs[layer] for layer in wanted)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Conditional embeddings (N, projection_dim) of N prompts (N, L)."""
        if attention_mask is not None and attention_mask.device.type != "cpu":
            # the mask that Transformers makes of this one, but only after it has waited for its values
            length = input_ids.shape[1]
            earlier = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
            attention_mask = attention_mask.bool()[:, None, None] & earlier
        with self.encoder_gradients():
            features = self.segmenter.clip.get_text_features(input_ids, attention_mask=attention_mask)
        return features.pooler_output

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        """What `encode_text` gives, alone in a tuple."""
        return (self.encode_text(input_ids, attention_mask),)

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        repeats: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """As of any model; one prompt an image as Transformers reads it, for logits that are bit-equal."""
        if input_ids.ndim == 2:
            return self.text_features(input_ids, attention_mask)
        return super().read(input_ids, attention_mask, repeats)

    def decode(self, activations: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """Logits (N, h, w) of B images under N = B S prompts, S in a row for each image.

        What comes before the prompt enters is computed once an image.
        """
        decoder, (conditional,) = self.segmenter.decoder, features
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
        x = x[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        enlarging = decoder.transposed_convolution
        for step in enlarging if isinstance(enlarging, nn.Sequential) else (enlarging,):
            x = _paste(step, x) if isinstance(step, nn.ConvTranspose2d) else step(x)
        return x.squeeze(1)


def _paste(convolution: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution whose patches lie side by side (kernel = stride), of (N, C, h, w).

    One product with the kernel, in a tenth of the time of PyTorch's general way on a processor.
    """
    weight, (down, across) = convolution.weight, convolution.kernel_size
    count, _, height, width = x.shape
    patches = x.flatten(2).transpose(1, 2) @ weight.flatten(1)
    patches = patches.view(count, height, width, -1, down, across).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(count, -1, height * down, width * across) + convolution.bias[:, None, None]


Model = CLIPSeg

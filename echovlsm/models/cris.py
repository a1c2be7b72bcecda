"""CRIS (Wang et al., CVPR 2022): CLIP's ResNet and text encoder, and a decoder that looks at every word.

The state dict has the original's names (`backbone. neck. decoder. proj.`), so its checkpoints load strictly.

**Padding.** The original masks words whose token id is 0, which its own tokenizer pads with. CLIP's
tokenizer in Transformers pads with the end-of-text id 49407, so the code of the study masked nothing and the
decoder attended to every padding token. ``padding="attention"`` (the default here) masks what the attention
mask says, or what follows the end-of-text token where there is none; ``padding="authors"`` compares with
`padding_token_id` and pads every prompt to `word_len`, as the study did.

**Enlarging.** The decoder's map has a quarter of the side. ``enlarging="bilinear"`` (the default here) brings
it to full size by pixel areas; ``enlarging="authors"`` as the code of the study does, bicubically with
aligned corners, before loss and threshold. Aligned corners move what lies at the border by one and a half
pixels, and a bicubic map overshoots beside an outline, so that one checkpoint gives other masks.

**Batch normalisation.** In training the neck normalises the sentences of all (image, prompt) pairs over
the batch. Where a batch holds one sentence only (level P0, or a single pair) that would hide it from the
neck, and the running statistics would lag behind an encoder that learns; the running statistics are used and
kept then, unlike in the original. Frozen encoders stay in eval mode and keep all their running statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from echovlsm.base import files, paths
from echovlsm.models.base import VisionLanguageModel, check_side, preprocessing, resize_positions
from echovlsm.models.common import ModelError
from echovlsm.models.cris_clip import CLIP, fit_clip
from echovlsm.models.cris_config import CRISConfig
from echovlsm.models.cris_parts import FPN, Projector, TransformerDecoder
from echovlsm.models.weights import load_strictly, local_folder, read_tensors, strip_module, write_network

CLIP_MEAN: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


class Prompt(NamedTuple):
    """N encoded prompts: words (N, L, text_width), sentences (N, embed_dim), padding bool (N, L)."""

    words: Tensor
    state: Tensor
    padding: Tensor


class CRIS(VisionLanguageModel):
    """CRIS with its tokenizer and the normalisation of its images.

    Parameters
    ----------
    config
        The architecture. Weights are random until they are loaded.
    tokenizer
        The tokenizer that belongs to the text encoder; needed by `tokenize` only.
    encoders
        ``frozen`` or ``unfrozen``.
    image_mean, image_std
        Per-channel normalisation of images scaled to 0-1 (CLIP's).
    image_size
        Side in pixels of the images that the model is meant for; by default the configuration's.
    """

    name = "cris"
    limit_name = " (word_len)"

    def __init__(
        self,
        config: CRISConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        encoders: str = "unfrozen",
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        image_size: int | None = None,
    ) -> None:
        size = image_size or config.image_size
        super().__init__(tokenizer, image_mean, image_std, encoders, size, config.word_len)
        self.config = config
        self.backbone = CLIP(config)
        self.neck = FPN(config.fpn_in, config.fpn_out)
        self.decoder = TransformerDecoder(
            config.decoder_layers, config.vis_dim, config.decoder_heads, config.decoder_ffn, config.dropout
        )
        self.proj = Projector(config.embed_dim, config.vis_dim // 2)
        self._set_trainable()

    @property
    def settings(self) -> CRISConfig:
        """The configuration."""
        return self.config

    # -- loading and saving -------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, weights: str | Path, encoders: str = "unfrozen") -> CRIS:
        """Load a folder that `save_pretrained` wrote, or a hub repository of that layout.

        Raises
        ------
        ModelError
            The folder or hub id is not there, is no CRIS folder, or its tensors do not fit its config.
        """
        folder = _folder(weights)
        for file in ("config.json", "model.safetensors"):
            if not (folder / file).is_file():
                raise ModelError(
                    f"weights: {folder} has no {file}; give a folder in Hugging Face layout. Of an original "
                    "CRIS or CLIP file `echovlsm weights convert` makes one"
                )
        saved = files.read_json(folder / "config.json", ModelError, "copy the folder again")
        if saved.get("model_type") != "cris":
            raise ModelError(
                f"weights: {folder} holds a {saved.get('model_type')!r} model, not CRIS; name that model"
            )
        known = {field.name for field in fields(CRISConfig)}
        strange = sorted(
            set(saved) - known - {"model_type", "architectures", "dtype", "transformers_version"}
        )
        if strange:
            raise ModelError(f"weights: {folder / 'config.json'} has unknown fields {', '.join(strange)}")
        try:
            config = CRISConfig(**{name: value for name, value in saved.items() if name in known})
            tokenizer = None
            if (folder / "tokenizer_config.json").is_file():
                tokenizer = CLIPTokenizer.from_pretrained(str(folder))
        except ModelError:
            raise
        except Exception as error:  # values of another type, or a broken tokenizer: many kinds
            raise ModelError(
                f"weights: {folder} cannot be used ({type(error).__name__}: {error}); its config.json or "
                "tokenizer is broken, copy the folder again"
            ) from error
        file = folder / "preprocessor_config.json"
        inputs = files.read_json(file, ModelError, "copy the folder again") if file.is_file() else {}
        model = cls(config, tokenizer, encoders, **preprocessing(inputs))
        load_strictly(model, read_tensors(folder / "model.safetensors"), folder / "model.safetensors")
        return model

    @classmethod
    def from_checkpoint(
        cls,
        file: str | Path,
        config: CRISConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        encoders: str = "unfrozen",
    ) -> CRIS:
        """Load an original CRIS checkpoint: safetensors, or a `.pth` with or without ``state_dict``.

        Pickles are only read with ``weights_only``; a ``module.`` before every name is dropped.

        Raises
        ------
        ModelError
            The file cannot be read safely, or its tensors are not exactly those of `config`.
        """
        model = cls(config or CRISConfig(), tokenizer, encoders)
        load_strictly(model, read_tensors(file), file)
        return model

    @classmethod
    def from_clip(
        cls,
        weights_file: str | Path,
        config: CRISConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        encoders: str = "unfrozen",
    ) -> CRIS:
        """A fresh CRIS on CLIP's ResNet weights (OpenAI's or open_clip's, trained with quick GELU).

        Neck, decoder, projector and the attention pool's residual path, which CLIP lacks, start from random
        values (`torch.manual_seed` decides which). The position embedding of the attention pool is resized
        to `image_resolution` if it was made for another.

        Raises
        ------
        ModelError
            The file cannot be read safely, or its tensors are not those of `config`'s encoders.
        """
        model = cls(config or CRISConfig(), tokenizer, encoders)
        tensors = fit_clip(read_tensors(weights_file), model.config.image_resolution // 32)
        load_strictly(model.backbone, tensors, weights_file, may_lack="visual.attnpool.connect.")
        return model

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """As of any module, also with the ``module.`` that data parallel training puts before every name."""
        return super().load_state_dict(strip_module(state_dict), strict, assign)

    def save_network(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`."""
        config = {"model_type": "cris", "architectures": ["CRIS"], **asdict(self.config)}
        write_network(folder, self, config)

    # -- what learns --------------------------------------------------------------------------------

    def _set_trainable(self) -> None:
        """Mark exactly the parameters that the loss can reach in the chosen encoder mode."""
        self.requires_grad_(True)
        self.backbone.requires_grad_(self.encoders == "unfrozen")
        self.backbone.logit_scale.requires_grad_(False)  # of CLIP's contrastive loss, not of the mask

    def parts(self) -> dict[str, nn.Module]:
        """The model's parts by name, for a table of parameters."""
        clip = self.backbone
        loose = nn.ParameterList([clip.positional_embedding, clip.text_projection, clip.logit_scale])
        return {
            "image encoder": clip.visual,
            "text encoder": nn.ModuleList([clip.token_embedding, clip.transformer, clip.ln_final, loose]),
            "neck": self.neck,
            "decoder": self.decoder,
            "projector": self.proj,
            "all": self,
        }

    @property
    def adapted(self) -> str:
        """What LoRA adapts.

        In the image encoder the convolutions of all residual blocks and the attention pool's query and value
        projections; in the text encoder both linear layers of every block. Its attention is a packed
        ``nn.MultiheadAttention``: there PEFT adds the adapter to the frozen weight and subtracts it again in
        each forward pass, so that the frozen weight drifts by rounding. It is left alone.
        """
        image = r"visual\.(layer\d+\.\d+\.conv[123]|attnpool\.[qv]_proj)"
        return image + r"|transformer\.resblocks\.\d+\.mlp\.c_(fc|proj)"

    def _resize(self, image_size: int) -> None:
        check_side(self.name, image_size, 32)
        pool = self.backbone.visual.attnpool
        old = pool.positional_embedding
        positions = resize_positions(old.detach(), image_size // 32)
        pool.positional_embedding = nn.Parameter(positions, requires_grad=old.requires_grad)
        self.config = replace(self.config, image_resolution=image_size, image_size=image_size)

    # -- inputs -------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As of any model; with ``padding="authors"`` padded to `word_len`.

        There every padding token has a part in the result.
        """
        ids, mask = super().tokenize(texts)
        if self.config.padding == "authors":
            short = self.config.word_len - ids.shape[1]
            ids = functional.pad(ids, (0, short), value=self.tokenizer.pad_token_id)
            mask = functional.pad(mask, (0, short))
        return ids, mask

    def padding_of(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Where the decoder looks away: bool (N, L) for prompts int64 (N, L)."""
        if self.config.padding == "authors":
            return input_ids == self.config.padding_token_id
        if attention_mask is not None:
            return attention_mask == 0
        end = input_ids.argmax(dim=-1, keepdim=True)
        return torch.arange(input_ids.shape[1], device=input_ids.device) > end

    def mask_of(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """What `padding_of` leaves, int64 (N, L)."""
        return (~self.padding_of(input_ids, attention_mask)).to(input_ids)

    # -- forward ------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of B images at 1/8, 1/16 and 1/32 of their size (channels: `fpn_in`)."""
        height, width = pixel_values.shape[-2:]
        if height % 32 or width % 32:
            raise ModelError(f"pixel_values: {height} x {width}; CRIS needs sides that are multiples of 32")
        with self.encoder_gradients():
            return self.backbone.encode_image(pixel_values)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Sentence vectors (N, embed_dim) of N prompts (N, L). `text_features` gives the words too."""
        return self.text_features(input_ids, attention_mask).state

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Prompt:
        """What the decoder needs of N prompts (N, L)."""
        if input_ids.shape[-1] > self.config.word_len:
            raise ModelError(
                f"input_ids: {input_ids.shape[-1]} tokens, but word_len is {self.config.word_len}"
            )
        with self.encoder_gradients():
            words, state = self.backbone.encode_text(input_ids)
        return Prompt(words, state, self.padding_of(input_ids, attention_mask))

    def decode(self, activations: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """Logits (N, H/4, W/4) of B images' maps under N = B S prompts, S in a row for each image."""
        words, state, padding = features
        neck = self.neck(activations, state)
        mixed = self.decoder(neck, words, padding).view_as(neck)
        return self.proj(mixed, state)[:, 0]

    quarter_logits = VisionLanguageModel.raw_logits
    """The raw map: as `forward`, but at a quarter of the input size."""

    def enlarge(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (N, 1, h, w) at `size`, as the configuration says."""
        if self.config.enlarging == "authors":
            return functional.interpolate(maps, size=size, mode="bicubic", align_corners=True)
        return super().enlarge(maps, size)


Model = CRIS


def _folder(weights: str | Path) -> Path:
    """The folder that `weights` names, fetched from the hub where it is an id."""
    if paths.resolve(weights).is_file():
        raise ModelError(
            f"weights: {weights} is a file; make a folder of it once: echovlsm weights convert FILE FOLDER"
        )
    if folder := local_folder(weights):
        return folder
    try:
        return Path(snapshot_download(str(weights), allow_patterns=["*.json", "*.safetensors", "merges.txt"]))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"weights: cannot load {str(weights)!r}: {str(error).splitlines()[0].rstrip('.')}. "
            "Give a folder that holds config.json, model.safetensors and the tokenizer, or go online."
        ) from error

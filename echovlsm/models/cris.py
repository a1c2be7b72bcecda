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

**Batch normalisation.** In training the neck normalises the sentences of all (picture, prompt) pairs over
the batch. Where a batch holds one sentence only (level P0, or a single pair) that would hide it from the
neck, and the running statistics would lag behind an encoder that learns; the running statistics are used and
kept then, unlike in the original. Frozen encoders stay in eval mode and keep all their running statistics.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from echovlsm.base import files, paths
from echovlsm.models.clipseg import _write_normalisation
from echovlsm.models.common import ModelError
from echovlsm.models.cris_clip import CLIP
from echovlsm.models.cris_config import PADDINGS, CRISConfig
from echovlsm.models.cris_parts import FPN, Projector, TransformerDecoder
from echovlsm.models.cris_weights import (
    fit_clip,
    load_strictly,
    read_tensors,
    strip_module,
)

__all__ = ["CLIP_MEAN", "CLIP_STD", "CRIS", "PADDINGS", "CRISConfig", "Prompt"]

CLIP_MEAN: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


class Prompt(NamedTuple):
    """N encoded prompts: words (N, L, text_width), sentences (N, embed_dim), padding bool (N, L)."""

    words: Tensor
    state: Tensor
    padding: Tensor

    def rows(self, where: Tensor) -> Prompt:
        """The prompts at indices `where`, in that order."""
        return Prompt(*(value[where] for value in self))


class CRIS(nn.Module):
    """CRIS with its tokenizer and picture normalisation.

    Parameters
    ----------
    config
        The architecture. Weights are random until they are loaded.
    tokenizer
        The tokenizer that belongs to the text encoder; needed by `tokenize` only.
    encoders
        ``frozen`` or ``unfrozen``.
    image_mean, image_std
        Per-channel normalisation of pictures scaled to 0-1 (CLIP's).
    image_size
        Side in pixels of the pictures that the model is meant for; by default the configuration's.
    """

    name = "cris"

    def __init__(
        self,
        config: CRISConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        encoders: str = "unfrozen",
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.encoders = config, tokenizer, encoders
        self.image_size = image_size or config.image_size
        self.backbone = CLIP(
            config.embed_dim,
            config.image_resolution,
            config.vision_layers,
            config.vision_width,
            config.context_length,
            config.vocab_size,
            config.text_width,
            config.text_heads,
            config.text_layers,
        )
        self.neck = FPN(config.fpn_in, config.fpn_out)
        self.decoder = TransformerDecoder(
            config.decoder_layers, config.vis_dim, config.decoder_heads, config.decoder_ffn, config.dropout
        )
        self.proj = Projector(config.embed_dim, config.vis_dim // 2)
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)
        self._set_trainable()

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
        model = cls(config, tokenizer, encoders, **_read_preprocessing(folder))
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

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, `model.safetensors`, tokenizer and `preprocessor_config.json` into `folder`."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with files.appearing(folder / "model.safetensors") as partial:
            partial.write_bytes(save(tensors, metadata={"format": "pt"}))
        with files.room(folder):
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            _write_normalisation(folder, self.image_size, self.image_mean.flatten(), self.image_std.flatten())
        config = {"model_type": "cris", "architectures": ["CRIS"], **asdict(self.config)}
        with files.appearing(folder / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n")

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

    def train(self, mode: bool = True) -> CRIS:
        """Set training mode; encoders that do not learn whole stay in eval mode, batch normalisation too."""
        super().train(mode)
        if self.encoders != "unfrozen":
            self.backbone.eval()
        return self

    def _encoder_gradients(self) -> contextlib.AbstractContextManager:
        return torch.no_grad() if self.encoders == "frozen" else contextlib.nullcontext()

    # -- inputs -------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both int64 (N, L).

        Padded to the longest text; with ``padding="authors"`` to `word_len`, because there every padding
        token has a part in the result.

        Raises
        ------
        ModelError
            The model has no tokenizer, or a text is longer than `word_len`: cutting it would drop words
            silently.
        """
        if self.tokenizer is None:
            raise ModelError("tokenizer: this CRIS has none; pass tokenizer= when it is made or loaded")
        limit = self.config.word_len
        encoded = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        short = limit - ids.shape[1]
        if short < 0:
            longest = max(texts, key=len)
            raise ModelError(f"prompt: longer than {limit} tokens (word_len): {longest!r}; shorten it")
        if self.config.padding == "authors":
            ids = functional.pad(ids, (0, short), value=self.tokenizer.pad_token_id)
            mask = functional.pad(mask, (0, short))
        return ids, mask

    def normalise(self, images: Tensor | np.ndarray) -> Tensor:
        """Grey pictures uint8 (B, H, W) or colour uint8 (B, 3, H, W) to float32 (B, 3, H, W), normalised."""
        values = torch.as_tensor(images).to(self.image_mean.device)
        if values.ndim == 3:
            values = values[:, None].expand(-1, 3, -1, -1)
        return (values.float() / 255 - self.image_mean) / self.image_std

    def padding_of(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Where the decoder looks away: bool (N, L) for prompts int64 (N, L)."""
        if self.config.padding == "authors":
            return input_ids == self.config.padding_token_id
        if attention_mask is not None:
            return attention_mask == 0
        end = input_ids.argmax(dim=-1, keepdim=True)
        return torch.arange(input_ids.shape[1], device=input_ids.device) > end

    # -- forward ------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of B pictures at 1/8, 1/16 and 1/32 of their size (channels: `fpn_in`)."""
        height, width = pixel_values.shape[-2:]
        if height % 32 or width % 32:
            raise ModelError(f"pixel_values: {height} x {width}; CRIS needs sides that are multiples of 32")
        with self._encoder_gradients():
            return self.backbone.encode_image(pixel_values)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Sentence vectors (N, embed_dim) of N prompts (N, L). `encode_prompt` gives the words too."""
        return self.encode_prompt(input_ids, attention_mask).state

    def encode_prompt(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Prompt:
        """What the decoder needs of N prompts (N, L)."""
        if input_ids.shape[-1] > self.config.word_len:
            raise ModelError(
                f"input_ids: {input_ids.shape[-1]} tokens, but word_len is {self.config.word_len}"
            )
        with self._encoder_gradients():
            words, state = self.backbone.encode_text(input_ids)
        return Prompt(words, state, self.padding_of(input_ids, attention_mask))

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """All that `forward` needs of N prompts (N, L): tensors (N, ...)."""
        return tuple(self.encode_prompt(input_ids, attention_mask))

    def decode(self, activations: Sequence[Tensor], prompt: Prompt) -> Tensor:
        """Logits (N, H/4, W/4) of B pictures' maps under N = B S prompts, S in a row for each picture."""
        neck = self.neck(activations, prompt.state)
        mixed = self.decoder(neck, prompt.words, prompt.padding).view_as(neck)
        return self.proj(mixed, prompt.state)[:, 0]

    def quarter_logits(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        features: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> Tensor:
        """The raw map: as `forward`, but at a quarter of the input size."""
        if features is not None:
            return self.decode(features[0], Prompt(*features[1])).unflatten(0, input_ids.shape[:-1])
        if input_ids.shape[0] != pixel_values.shape[0]:
            raise ModelError(f"input_ids: {input_ids.shape[0]} rows for {pixel_values.shape[0]} pictures")
        maps = self.encode_image(pixel_values)
        length = input_ids.shape[-1]
        ids = input_ids.reshape(-1, length)
        mask = None if attention_mask is None else attention_mask.reshape(-1, length)
        rows = torch.cat([ids, (~self.padding_of(ids, mask)).to(ids)], dim=1)
        distinct, where = torch.unique(rows, dim=0, return_inverse=True)
        prompt = self.encode_prompt(distinct[:, :length], distinct[:, length:]).rows(where)
        return self.decode(maps, prompt).unflatten(0, input_ids.shape[:-1])

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
            Normalised pictures, float (B, 3, H, W), H and W multiples of 32.
        input_ids, attention_mask
            One prompt a picture, int64 (B, L), or S prompts a picture, (B, S, L). Each picture is encoded
            once and each distinct prompt of the batch once.
        features
            What `encode_image` gives for the B pictures and `text_features` for the B S prompts, where that
            is known: then nothing is encoded.

        Returns
        -------
        Tensor
            Logits at input size, (B, H, W) or (B, S, H, W): `quarter_logits`, enlarged as the configuration
            says.
        """
        logits = self.quarter_logits(pixel_values, input_ids, attention_mask, features)
        flat = logits.reshape(-1, 1, *logits.shape[-2:])
        size = tuple(pixel_values.shape[-2:])
        theirs = self.config.enlarging == "authors"
        mode = "bicubic" if theirs else "bilinear"
        whole = functional.interpolate(flat, size=size, mode=mode, align_corners=theirs)
        return whole.view(*logits.shape[:-2], *size)


def _folder(weights: str | Path) -> Path:
    """The folder that `weights` names, fetched from the hub where it is an id."""
    folder, weights = paths.resolve(weights), str(weights)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(
            f"weights: {weights} is a file; make a folder of it once: echovlsm weights convert FILE FOLDER"
        )
    if weights.startswith((".", "/", "~", "data/", "runs/")) or weights.count("/") > 1:
        raise ModelError(f"weights: the folder {weights} does not exist; give one that does, or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(weights, allow_patterns=["*.json", "*.safetensors", "merges.txt"]))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"weights: cannot load {weights!r}: {str(error).splitlines()[0].rstrip('.')}. "
            "Give a folder that holds config.json, model.safetensors and the tokenizer, or go online."
        ) from error


def _read_preprocessing(folder: Path) -> dict[str, object]:
    """Mean, sd and side from `preprocessor_config.json`; nothing where there is none."""
    file = folder / "preprocessor_config.json"
    saved = files.read_json(file, ModelError, "copy the folder again") if file.is_file() else {}
    found = {name: saved[name] for name in ("image_mean", "image_std") if name in saved}
    side = saved.get("size")
    side = side.get("height", side.get("shortest_edge")) if isinstance(side, dict) else side
    return found | ({"image_size": int(side)} if side else {})

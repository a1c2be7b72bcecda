"""What fixes a CRIS: the fields of its configuration and the rules between them."""

from __future__ import annotations

from dataclasses import dataclass

from echovlsm.models.common import ModelError

PADDINGS: tuple[str, ...] = ("attention", "authors")
"""How padding tokens are told from words (see `echovlsm.models.cris`)."""

ENLARGINGS: tuple[str, ...] = ("bilinear", "authors")
"""How the decoder's map becomes logits at full size (see `echovlsm.models.cris`)."""


@dataclass(frozen=True)
class CRISConfig:
    """Everything that fixes a CRIS. The defaults are those of the study: RN50, 416 px, 146.8 M parameters.

    Parameters
    ----------
    model
        Always ``CRIS``.
    image_resolution
        Side of the images that CLIP was trained with; fixes the grid of its position embedding.
    vision_layers, vision_width, embed_dim
        CLIP's image encoder; `embed_dim` is also the length of the sentence vector.
    context_length, vocab_size, text_width, text_heads, text_layers
        CLIP's text encoder.
    word_len
        Longest prompt in tokens. No weight depends on it; the original has 17 for RefCOCO, the study 77.
    fpn_in, fpn_out
        Channels into and out of the neck's three fusions.
    vis_dim, decoder_layers, decoder_heads, decoder_ffn, dropout
        The decoder.
    image_size
        Side in pixels of the images that the model is meant for.
    padding, padding_token_id
        One of `PADDINGS`; the id counts for ``authors`` only.
    enlarging
        One of `ENLARGINGS`.

    Raises
    ------
    ModelError
        Fields that do not fit each other, all in one message.
    """

    model: str = "CRIS"
    image_resolution: int = 224
    vision_layers: tuple[int, ...] = (3, 4, 6, 3)
    vision_width: int = 64
    embed_dim: int = 1024
    context_length: int = 77
    word_len: int = 77
    vocab_size: int = 49408
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 12
    fpn_in: tuple[int, ...] = (512, 1024, 1024)
    fpn_out: tuple[int, ...] = (256, 512, 1024)
    vis_dim: int = 512
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_ffn: int = 2048
    dropout: float = 0.2
    image_size: int = 416
    padding: str = "attention"
    padding_token_id: int = 0
    enlarging: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("vision_layers", "fpn_in", "fpn_out"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists, where JSON was read
        width, decoder, words = self.vision_width, self.vis_dim, self.text_width
        channels = (8 * width, 16 * width, self.embed_dim)
        enlarged, maps = self.enlarging, self.fpn_out
        rules = {
            f"model: {self.model!r} is not CRIS": self.model == "CRIS",
            f"padding: {self.padding!r} is not one of {', '.join(PADDINGS)}": self.padding in PADDINGS,
            f"enlarging: {enlarged!r} is not one of {', '.join(ENLARGINGS)}": enlarged in ENLARGINGS,
            f"vision_layers: {self.vision_layers} are not four stages": len(self.vision_layers) == 4,
            f"vision_width: {width} is odd": width % 2 == 0,
            f"fpn_in: {self.fpn_in} is not {channels}, which vision_width and embed_dim ask for": (
                self.fpn_in == channels
            ),
            f"fpn_out: {maps} is not three widths with vis_dim ({decoder}) in the middle": (
                len(maps) == 3 and maps[1] == decoder
            ),
            f"text_width: {words} is not vis_dim ({decoder}), but places attend to words": words == decoder,
            f"vis_dim: {decoder} is no multiple of 4": decoder % 4 == 0,
            f"decoder_heads: {self.decoder_heads} do not divide vis_dim": decoder % self.decoder_heads == 0,
            f"text_heads: {self.text_heads} do not divide text_width": words % self.text_heads == 0,
            f"word_len: {self.word_len} is more than context_length ({self.context_length})": (
                self.word_len <= self.context_length
            ),
            f"image_resolution: {self.image_resolution} is no multiple of 32": (
                self.image_resolution % 32 == 0
            ),
            f"image_size: {self.image_size} is no multiple of 32": self.image_size % 32 == 0,
        }
        broken = [message for message, holds in rules.items() if not holds]
        if broken:
            raise ModelError(f"CRISConfig: {'; '.join(broken)}")

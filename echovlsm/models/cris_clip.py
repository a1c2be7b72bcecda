"""The two CLIP encoders of CRIS: a modified ResNet that keeps its map, and a causal text transformer.

Architecture of Radford et al., ICML 2021 (ResNet variant), with the changes of Wang et al., CVPR 2022,
section 3.1: the image encoder gives three maps instead of one vector, the attention pool works on every place
of the last map and has a residual path, and the text encoder gives every word as well as the sentence.
Parameter names are those of the released weights of both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from echovlsm.models.base import map_of_positions, resize_positions
from echovlsm.models.cris_config import CRISConfig

_POSITIONS = "visual.attnpool.positional_embedding"
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


class Bottleneck(nn.Module):
    """Residual block whose stride is an average pool, so that it does not alias."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        width_out = width * self.expansion
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, width_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or width_in != width_out:
            shortcut = [
                ("-1", nn.AvgPool2d(stride)),
                ("0", nn.Conv2d(width_in, width_out, 1, bias=False)),
                ("1", nn.BatchNorm2d(width_out)),
            ]
            self.downsample = nn.Sequential(OrderedDict(shortcut))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, h, w) to (B, 4 width, h / stride, w / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return functional.relu(out + self.downsample(x))


class AttentionPool2d(nn.Module):
    """CRIS's spatial attention pool: attention between all places, plus a residual 1 x 1 convolution.

    CLIP's own pool lets one mean token ask; here every place asks, and the token has no part in it. Its row
    of `positional_embedding` is kept for the sake of CLIP's weights.
    """

    def __init__(self, grid: int, width: int, heads: int, width_out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, width_out)
        self.connect = nn.Sequential(nn.Conv2d(width, width_out, 1, bias=False), nn.BatchNorm2d(width_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to (B, width_out, h, w)."""
        size = (x.shape[-2], x.shape[-1])
        places = map_of_positions(self.positional_embedding, size)
        tokens = (x + places.to(x.dtype)).flatten(2).transpose(1, 2)
        query, key, value = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = self.c_proj(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, size)
        return functional.relu(mixed + self.connect(x))


class ModifiedResNet(nn.Module):
    """CLIP's ResNet: a stem of three convolutions, four stages, the spatial attention pool."""

    def __init__(self, layers: tuple[int, ...], width: int, width_out: int, grid: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = _stage(width, width, layers[0], 1)
        self.layer2 = _stage(4 * width, 2 * width, layers[1], 2)
        self.layer3 = _stage(8 * width, 4 * width, layers[2], 2)
        self.layer4 = _stage(16 * width, 8 * width, layers[3], 2)
        self.attnpool = AttentionPool2d(grid, 32 * width, width // 2, width_out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) to maps at 1/8, 1/16 and 1/32 of their size."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = functional.relu(norm(conv(x)))
        eighth = self.layer2(self.layer1(self.avgpool(x)))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.attnpool(self.layer4(sixteenth))


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    following = (Bottleneck(width * Bottleneck.expansion, width) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(width_in, width, stride), *following)


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU; weights trained with the exact one do not fit."""

    def forward(self, x: Tensor) -> Tensor:
        """Element by element."""
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer layer of CLIP's text encoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        steps = [
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", QuickGELU()),
            ("c_proj", nn.Linear(4 * width, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(steps))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, blocked: Tensor) -> Tensor:
        """Words (N, L, width); `blocked` bool (L, L) is true where a row must not look."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=blocked)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of `ResidualAttentionBlock`."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Words (N, L, width); each looks at itself and at those before it."""
        length = x.shape[1]
        blocked = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        for block in self.resblocks:
            x = block(x, blocked)
        return x


class CLIP(nn.Module):
    """Both encoders of `config`, with CLIP's names: `visual`, `transformer` and what surrounds it."""

    def __init__(self, config: CRISConfig) -> None:
        super().__init__()
        width = config.text_width
        self.visual = ModifiedResNet(
            config.vision_layers, config.vision_width, config.embed_dim, config.image_resolution // 32
        )
        self.transformer = Transformer(width, config.text_layers, config.text_heads)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.full((), 2.6593))  # log(1 / 0.07); unused in segmentation
        self._initialise()

    def _initialise(self) -> None:
        """Random start with the spreads of CLIP's own code."""
        width, layers = self.transformer.resblocks[0].ln_1.weight.numel(), len(self.transformer.resblocks)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * width * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * width * layers) ** -0.5)
        pool = self.visual.attnpool
        for linear in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for module in self.visual.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, 8 width, H/8, W/8), (B, 16 width, H/16, W/16), (B, embed_dim, H/32, W/32)."""
        return self.visual(pixel_values)

    def encode_text(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Words (N, L, text_width) and sentences (N, embed_dim) of prompts int64 (N, L).

        The sentence is read at the end-of-text token, which has the highest id of a vocabulary.
        """
        length = input_ids.shape[1]
        words = self.token_embedding(input_ids) + self.positional_embedding[:length]
        words = self.ln_final(self.transformer(words))
        ends = words[torch.arange(len(words), device=words.device), input_ids.argmax(dim=-1)]
        return words, ends @ self.text_projection


def fit_clip(tensors: Mapping[str, Tensor], grid: int) -> dict[str, Tensor]:
    """CLIP's tensors without its settings, the attention pool's positions resized to `grid` x `grid`."""
    kept = {name: value for name, value in tensors.items() if name not in _NOT_WEIGHTS}
    positions = kept.get(_POSITIONS)
    if positions is not None and positions.ndim == 2 and len(positions) != grid**2 + 1:
        kept[_POSITIONS] = resize_positions(positions.float(), grid)
    return kept

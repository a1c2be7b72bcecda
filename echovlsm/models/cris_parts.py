"""What CRIS adds to CLIP (Wang et al., CVPR 2022): neck, vision-language decoder, text-to-pixel projector.

Parameter names are those of the released weights. Every part takes N rows, one for each pair of an image and
a prompt; the neck also takes fewer images than prompts and does once what depends on the image alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

CACHED_VALUES = 2**21
"""Values between two products of `convolve_doubled`: small maps share one, large ones keep to the caches."""


def conv_block(width_in: int, width_out: int, kernel: int = 1) -> nn.Sequential:
    """Convolution of unchanged size, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
    )


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@lru_cache(maxsize=16)
def _taps_of_doubled(length: int) -> Tensor:
    """How each tap of a kernel of three sees a line of places enlarged twofold: (3, 2 length, length).

    Row r of tap t gives place r + t - 1 of the enlarged line, and nothing beyond its ends.
    """
    with torch.inference_mode(False), torch.no_grad():
        line = functional.interpolate(torch.eye(length)[None], scale_factor=2, mode="linear")[0].T
        padded = functional.pad(line, (0, 0, 1, 1))
        return torch.stack([padded[tap : tap + 2 * length] for tap in range(3)])


def convolve_doubled(x: Tensor, weight: Tensor) -> Tensor:
    """A 3 x 3 convolution of a map enlarged twofold, in a third of the multiplications.

    Enlarging mixes places and leaves channels alone, each tap of the kernel mixes channels and leaves places
    alone: so channels may be mixed first, on the small map. Equal to rounding.

    Parameters
    ----------
    x
        Map (N, C, h, w).
    weight
        (O, C, 3, 3), without bias.

    Returns
    -------
    Tensor
        (N, O, 2 h, 2 w): ``conv2d(interpolate(x, scale_factor=2, mode="bilinear"), weight, padding=1)``.
    """
    count, channels, height, width = x.shape
    out = len(weight)
    down, across = (_taps_of_doubled(side).to(x) for side in (height, width))
    down = down.transpose(0, 1).reshape(2 * height, 3 * height)
    across = across.permute(1, 2, 0).reshape(2 * width, 3 * width)
    kernel = weight.flatten(1).T.contiguous().view(channels, 3, 3 * out)
    at_a_time = max(1, CACHED_VALUES // (9 * height * width * out))
    results = []
    for maps in x.permute(0, 2, 3, 1).split(at_a_time):
        places = maps.reshape(len(maps), -1, channels)
        mixed = ((places @ kernel[:, tap]).view(-1, height, 3 * width, out) for tap in range(3))
        lines = torch.cat([across @ one for one in mixed], dim=1)
        results.append(down @ lines.view(-1, 3 * height, 2 * width * out))
    return torch.cat(results).view(count, 2 * height, 2 * width, out).permute(0, 3, 1, 2)


class CoordConv(nn.Module):
    """A 3 x 3 convolution that also sees where it is: x and y from -1 to 1 as two more channels."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv1 = conv_block(width_in + 2, width_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, h, w) to (N, width_out, h, w)."""
        height, width = x.shape[-2:]
        down = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        across = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        y, x_place = torch.meshgrid(down, across, indexing="ij")
        places = torch.stack([x_place, y]).expand(len(x), -1, -1, -1)
        return self.conv1(torch.cat([x, places], dim=1))


def _parts(block: nn.Sequential, *maps: Tensor) -> list[Tensor]:
    """What each map adds to the 1 x 1 convolution with which `block` begins, were they joined as channels."""
    weights = block[0].weight.split([x.shape[1] for x in maps], dim=1)
    return [functional.conv2d(x, weight) for x, weight in zip(maps, weights, strict=True)]


class FPN(nn.Module):
    """Cross-modal neck (section 3.1, equations 1-5): three maps and the sentence to one map at 1/16.

    Parameters
    ----------
    width_in
        Channels of the maps at 1/8, 1/16 and 1/32.
    width_out
        Channels of the three fusions, finest first; the second is the neck's own width.
    """

    def __init__(self, width_in: Sequence[int], width_out: Sequence[int]) -> None:
        super().__init__()
        third, neck, fifth = width_out
        self.txt_proj = nn.Sequential(
            nn.Linear(width_in[2], fifth, bias=False), nn.BatchNorm1d(fifth), nn.ReLU()
        )
        self.f1_v_proj = conv_block(width_in[2], fifth)
        self.norm_layer = nn.Sequential(nn.BatchNorm2d(fifth), nn.ReLU())
        self.f2_v_proj = conv_block(width_in[1], neck, 3)
        self.f2_cat = conv_block(fifth + neck, neck)
        self.f3_v_proj = conv_block(width_in[0], third, 3)
        self.f3_cat = conv_block(third + neck, neck)
        self.f4_proj5 = conv_block(fifth, neck, 3)
        self.f4_proj4 = conv_block(neck, neck, 3)
        self.f4_proj3 = conv_block(neck, neck, 3)
        self.aggr = conv_block(3 * neck, neck)
        self.coordconv = nn.Sequential(CoordConv(neck, neck), conv_block(neck, neck, 3))

    def forward(self, maps: Sequence[Tensor], state: Tensor) -> Tensor:
        """Maps of B images and N = B S sentences (N, width), S in a row for an image: (N, neck, h, w)."""
        eighth, sixteenth, last = maps
        each = len(state) // len(last)

        def rows(x: Tensor) -> Tensor:
            return x.repeat_interleave(each, dim=0) if each > 1 else x

        # A 1 x 1 convolution of joined maps is the sum of one of each: what the image alone decides is
        # computed once an image, and what is enlarged is convolved before.
        f3 = functional.avg_pool2d(self.f3_v_proj(eighth), 2)
        f4 = self.f2_v_proj(sixteenth)
        f5 = self.norm_layer(rows(self.f1_v_proj(last)) * self._project(state)[..., None, None])
        seen, read = _parts(self.f2_cat, f4, f5)
        f4 = self.f2_cat[1:](rows(seen) + _double(read))
        seen, read = _parts(self.f3_cat, f3, f4)
        f3 = self.f3_cat[1:](rows(seen) + read)
        fine, middle, coarse = _parts(self.aggr, self.f4_proj3(f3), self.f4_proj4(f4), self.f4_proj5(f5))
        return self.coordconv(self.aggr[1:](fine + middle + _double(coarse)))

    def _project(self, state: Tensor) -> Tensor:
        """Sentences (N, width) to gates (N, fifth); normalised over the batch only if it holds two kinds.

        The batch statistics of one sentence, however often it occurs, say nothing: they would hide it, and
        the running ones would lag behind a text encoder that learns. Both are computed and one is taken:
        asking which first would wait for the device.
        """
        linear, norm, relu = self.txt_proj
        x = linear(state)
        if not norm.training:
            return relu(norm(x))
        kept = (norm.running_mean, norm.running_var)
        before, after = ([values.clone() for values in kept] for _ in range(2))
        by_running = functional.batch_norm(x, *before, norm.weight, norm.bias, eps=norm.eps)
        if len(x) == 1:
            return relu(by_running)
        by_batch = functional.batch_norm(x, *after, norm.weight, norm.bias, True, norm.momentum, norm.eps)
        alike = (state == state[:1]).all()
        for values, old, new in zip(kept, before, after, strict=True):
            values.copy_(torch.where(alike, old, new))
        norm.num_batches_tracked += ~alike
        return relu(torch.where(alike, by_running, by_batch))


def _waves(length: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of positions 0 .. length - 1, interleaved, float32 (length, width)."""
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def word_positions(width: int, length: int, device: torch.device) -> Tensor:
    """Position code of words, float32 (1, length, width)."""
    return _waves(length, width, device)[None]


def pixel_positions(width: int, height: int, breadth: int, device: torch.device) -> Tensor:
    """Position code of a map's places, row by row, half for x and half for y; float32 (1, h w, width)."""
    across = _waves(breadth, width // 2, device).expand(height, -1, -1)
    down = _waves(height, width // 2, device)[:, None].expand(-1, breadth, -1)
    return torch.cat([across, down], dim=-1).flatten(0, 1)[None]


class TransformerDecoder(nn.Module):
    """Vision-language decoder (section 3.2, equations 6-8): places attend to places, then to words."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(width, heads, hidden, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, vis: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        """Map (N, C, h, w), words (N, L, C), `padding` bool (N, L) true where to look away: (N, C, h w)."""
        places = pixel_positions(vis.shape[1], *vis.shape[-2:], device=vis.device).to(vis.dtype)
        order = word_positions(words.shape[2], words.shape[1], words.device).to(words.dtype)
        x = vis.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, words, places, order, padding)
        return self.norm(x).transpose(1, 2)


def _attend(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None
) -> Tensor:
    """What `attention` gives, (N, L, C); `seen` is true where a query may look. Without PyTorch's copies."""
    width, weight, bias = attention.embed_dim, attention.in_proj_weight, attention.in_proj_bias
    if query is key:
        both = functional.linear(query, weight[: 2 * width], bias[: 2 * width])
        query, key = both.split(width, dim=-1)
    else:
        query = functional.linear(query, weight[:width], bias[:width])
        key = functional.linear(key, weight[width : 2 * width], bias[width : 2 * width])
    value = functional.linear(value, weight[2 * width :], bias[2 * width :])
    heads = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    dropout = attention.dropout if attention.training else 0.0
    mixed = functional.scaled_dot_product_attention(*heads, attn_mask=seen, dropout_p=dropout)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


class TransformerDecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised before and after."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn_norm = nn.LayerNorm(width)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.ffn = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, width),
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.dropout3 = nn.Dropout(dropout)

    def forward(self, x: Tensor, words: Tensor, places: Tensor, order: Tensor, padding: Tensor) -> Tensor:
        """Places (N, h w, C), words (N, L, C), their position codes, `padding` bool (N, L)."""
        y = self.norm1(x)
        seat = y + places
        y = _attend(self.self_attn, seat, seat, y)
        x = x + self.dropout1(self.self_attn_norm(y))
        y = self.norm2(x) + places
        y = _attend(self.multihead_attn, y, words + order, words, ~padding[:, None, None])
        x = x + self.dropout2(self.cross_attn_norm(y))
        return x + self.dropout3(self.ffn(self.norm3(x)))


class Projector(nn.Module):
    """Text-to-pixel projector (section 3.3): the sentence becomes the convolution that draws the mask."""

    def __init__(self, sentence: int, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel
        self.vis = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv_block(2 * width, 2 * width, 3),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv_block(2 * width, width, 3),
            nn.Conv2d(width, width, 1),
        )
        self.txt = nn.Linear(sentence, width * kernel * kernel + 1)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Map (N, 2 width, h, w) and sentences (N, sentence) to logits (N, 1, 4 h, 4 w)."""
        drawn = self.txt(state)
        weight = drawn[:, :-1].unflatten(1, (-1, self.kernel**2))
        if x.device.type == "cpu":
            return self._draw(x, weight) + drawn[:, -1, None, None, None]
        x = self.vis(x)
        count, width, height, breadth = x.shape
        # One convolution with a group a row: each row has a kernel of its own.
        logits = functional.conv2d(
            x.reshape(1, count * width, height, breadth),
            weight.reshape(count, width, self.kernel, self.kernel),
            bias=drawn[:, -1],
            padding=self.kernel // 2,
            groups=count,
        )
        return logits.transpose(0, 1)

    def _draw(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same on a processor in fewer operations, without the bias; `weight` (N, width, kernel ** 2).

        Maps are enlarged by `convolve_doubled`. The last 1 x 1 convolution goes into each row's kernel; a
        product with its taps and a sum over these, each moved to its place, are the convolution.
        """
        _, first, _, second, last = self.vis
        for convolution, *rest in (first, second):
            x = convolve_doubled(x, convolution.weight)
            for step in rest:
                x = step(x)
        mixed = last.weight.flatten(1).T @ weight
        taps = mixed.transpose(1, 2) @ x.flatten(2) + (last.bias @ weight)[..., None]
        return functional.fold(taps.flip(1), x.shape[-2:], self.kernel, padding=self.kernel // 2)

"""The denoiser of semantic diffusion (Wang et al. 2022, Semantic Image Synthesis via Diffusion Models).

It is the U-Net of guided diffusion (Dhariwal & Nichol 2021) whose middle and decoder are normalised by SPADE
(Park et al. 2019): the label map gives each place its own scale and shift. The encoder sees the noisy image
and the time only. Modules carry the names of the original, so that its checkpoints load by their own keys.

Scale and shift depend on the label map but not on the time: `SemanticUNet.modulate` computes them once for
all steps of a sampling run, which halves the work of a step or better.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

DROPPED = -1
"""The class of a dropped label, for classifier-free guidance: no channel of the one-hot map is set."""

Modulation = list[tuple[Tensor, Tensor]]
"""Scale and shift of every SPADE normalisation, in order; each (B, C, h, w)."""


class ConditionError(ValueError):
    """A label map that the model cannot draw from; the message says which class or size."""


@dataclasses.dataclass(frozen=True)
class SemanticUNetConfig:
    """Shape of a `SemanticUNet`; the defaults are those of the echo paper (256 pixels, five classes).

    Parameters
    ----------
    image_size
        Side in pixels of the square images.
    in_channels, out_channels
        1 for grey images; `out_channels` is twice that when the variance is learned.
    model_channels, channel_mult, num_res_blocks
        Width of the first level, width of each level relative to it, residual blocks a level.
    attention_downsample_factors
        Levels with self-attention, by their downsampling; ``(8, 16, 32)`` is 32, 16, 8 pixels at 256.
    num_classes
        Classes of the label map; 5 are the sector classes (`echovlsm.cohort.sectors`).
    use_scale_shift_norm
        The time scales and shifts after the second normalisation; otherwise it is added before it.
    resblock_updown
        Residual blocks change the resolution; otherwise a strided convolution and an upsampling do.
    use_new_attention_order
        Whether queries, keys and values are split before the heads.
    patch_size
        Side of the squares of pixels that become channels before the first level (Hoogeboom et al. 2023,
        "simple diffusion"); 1 as in the original. With 2 a step costs a quarter.
    """

    image_size: int = 256
    in_channels: int = 1
    model_channels: int = 256
    out_channels: int = 2
    num_res_blocks: int = 2
    attention_downsample_factors: tuple[int, ...] = (8, 16, 32)
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_classes: int = 5
    num_head_channels: int = 64
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False
    spade_hidden: int = 128
    groupnorm_groups: int = 32
    patch_size: int = 1
    dropout: float = 0.0
    model: str = "SemanticDiffusionUNet"

    def __post_init__(self) -> None:
        for name in ("attention_downsample_factors", "channel_mult"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        steps = self.patch_size * 2 ** (len(self.channel_mult) - 1)
        if self.image_size % steps:
            raise ValueError(f"image_size: {self.image_size} is not a multiple of {steps}")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(f"out_channels: {self.out_channels} is neither in_channels nor twice that")

    @property
    def learned_variance(self) -> bool:
        """Whether the second half of the output says the variance."""
        return self.out_channels == 2 * self.in_channels


class _Spade(nn.Module):
    """Group normalisation whose scale and shift come from the label map."""

    def __init__(self, channels: int, downsample: int, config: SemanticUNetConfig) -> None:
        super().__init__()
        hidden = config.spade_hidden
        self.downsample, self.index = downsample, -1
        self.norm = nn.GroupNorm(config.groupnorm_groups, channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(config.num_classes, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def modulation(self, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift at this level's resolution."""
        size = [side // self.downsample for side in one_hot.shape[-2:]]
        hidden = self.mlp_shared(functional.interpolate(one_hot, size=size, mode="nearest"))
        return self.mlp_gamma(hidden), self.mlp_beta(hidden)

    def forward(self, x: Tensor, condition: Tensor | Modulation) -> Tensor:
        gamma, beta = self.modulation(condition) if torch.is_tensor(condition) else condition[self.index]
        return torch.addcmul(beta, self.norm(x), 1 + gamma)


class _ResBlock(nn.Module):
    """Residual block, conditioned on the time, and by SPADE on the label map where `spade` is true."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        downsample: int,
        config: SemanticUNetConfig,
        *,
        spade: bool,
        change: str = "",
    ) -> None:
        super().__init__()
        self.spade, self.change, self.scale_shift = spade, change, config.use_scale_shift_norm
        after = {"up": downsample // 2, "down": downsample * 2}.get(change, downsample)
        first = nn.Conv2d(channels, out_channels, 3, padding=1)
        second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        nn.init.zeros_(second.weight)
        nn.init.zeros_(second.bias)
        last = [nn.SiLU(), nn.Dropout(config.dropout), second]
        if spade:
            self.in_norm = _Spade(channels, downsample, config)
            self.in_layers = nn.Sequential(nn.SiLU(), first)
            self.out_norm = _Spade(out_channels, after, config)
            self.out_layers = nn.Sequential(*last)
        else:
            groups = config.groupnorm_groups
            self.in_layers = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), first)
            self.out_layers = nn.Sequential(nn.GroupNorm(groups, out_channels), *last)
        embedded = out_channels * (2 if self.scale_shift else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.model_channels, embedded))
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor, condition: Tensor | Modulation) -> Tensor:
        h = self.in_norm(x, condition) if self.spade else x
        h = self.in_layers[:-1](h)
        h, x = _resize(h, self.change), _resize(x, self.change)
        h = self.in_layers[-1](h)
        time = self.emb_layers(embedding)[:, :, None, None]
        if not self.scale_shift:
            h = h + time
        rest = self.out_layers if self.spade else self.out_layers[1:]
        h = self.out_norm(h, condition) if self.spade else self.out_layers[0](h)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        return self.skip_connection(x) + rest(h)


class _Attention(nn.Module):
    """Self-attention over all places of a level."""

    def __init__(self, channels: int, config: SemanticUNetConfig) -> None:
        super().__init__()
        if channels % config.num_head_channels:
            raise ValueError(
                f"num_head_channels: {config.num_head_channels} does not divide a level's {channels} channels"
            )
        self.heads, self.new_order = channels // config.num_head_channels, config.use_new_attention_order
        self.norm = nn.GroupNorm(config.groupnorm_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        flat = x.reshape(batch, channels, -1)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            parts = [part.reshape(batch, self.heads, -1, flat.shape[-1]) for part in qkv.chunk(3, dim=1)]
        else:
            parts = qkv.reshape(batch, self.heads, -1, flat.shape[-1]).chunk(3, dim=2)
        query, key, value = (part.transpose(2, 3) for part in parts)
        h = functional.scaled_dot_product_attention(query, key, value).transpose(2, 3)
        return (flat + self.proj_out(h.reshape(batch, channels, -1))).reshape(x.shape)


class _Block(nn.ModuleList):
    """Modules one after the other; residual blocks are given time and condition too."""

    def forward(self, x: Tensor, embedding: Tensor, condition: Tensor | Modulation) -> Tensor:
        for module in self:
            x = module(x, embedding, condition) if isinstance(module, _ResBlock) else module(x)
        return x


def _resize(x: Tensor, change: str) -> Tensor:
    if change == "up":
        return functional.interpolate(x, scale_factor=2, mode="nearest")
    return functional.avg_pool2d(x, 2) if change == "down" else x


class SemanticUNet(nn.Module):
    """Denoiser of the semantic diffusion model.

    The weights start as in guided diffusion: the last layer of each residual block, of each attention and of
    the whole is zero.
    """

    def __init__(self, config: SemanticUNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        )
        channels, down, patch = int(config.channel_mult[0] * width), 1, config.patch_size**2
        self.input_blocks = nn.ModuleList(
            [_Block([nn.Conv2d(config.in_channels * patch, channels, 3, padding=1)])]
        )
        skips = [channels]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(self._level(channels, mult, down, spade=False))
                channels = int(mult * width)
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(_Block([self._change(channels, down, "down", spade=False)]))
                skips.append(channels)
                down *= 2
        self.middle_block = _Block(
            [
                _ResBlock(channels, channels, down, config, spade=True),
                _Attention(channels, config),
                _ResBlock(channels, channels, down, config, spade=True),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for number in range(config.num_res_blocks + 1):
                block = self._level(channels + skips.pop(), mult, down, spade=True)
                channels = int(mult * width)
                if level and number == config.num_res_blocks:
                    block.append(self._change(channels, down, "up", spade=True))
                    down //= 2
                self.output_blocks.append(block)
        head = nn.Conv2d(channels, config.out_channels * patch, 3, padding=1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.out = nn.Sequential(nn.GroupNorm(config.groupnorm_groups, channels), nn.SiLU(), head)
        self._spades = [module for module in self.modules() if isinstance(module, _Spade)]
        for index, module in enumerate(self._spades):
            module.index = index

    def _level(self, channels: int, mult: float, down: int, *, spade: bool) -> _Block:
        width = int(mult * self.config.model_channels)
        block = _Block([_ResBlock(channels, width, down, self.config, spade=spade)])
        if down in self.config.attention_downsample_factors:
            block.append(_Attention(width, self.config))
        return block

    def _change(self, channels: int, down: int, change: str, *, spade: bool) -> nn.Module:
        """What leads from one resolution to the next, by the original's names."""
        if self.config.resblock_updown:
            return _ResBlock(channels, channels, down, self.config, spade=spade, change=change)
        if change == "down":
            return nn.Sequential(OrderedDict(op=nn.Conv2d(channels, channels, 3, stride=2, padding=1)))
        enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        return nn.Sequential(OrderedDict(enlarge=enlarge, conv=nn.Conv2d(channels, channels, 3, padding=1)))

    def one_hot(self, label_map: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Label map, integer (B, H, W), to one-hot (B, classes, H, W); `DROPPED` sets no channel.

        Raises
        ------
        ConditionError
            Not integer, not (B, H, W), or, on a processor, a class that the model does not have: looking for
            one on a GPU would wait for it, so that who brings a map there asks `check_classes`.
        """
        if label_map.ndim != 3 or label_map.is_floating_point():
            raise ConditionError(
                f"label_map: {label_map.dtype} {tuple(label_map.shape)}; integer classes (B, H, W) expected"
            )
        labels = label_map.long()
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check_classes(labels)
        classes = torch.arange(self.config.num_classes, device=labels.device).view(1, -1, 1, 1)
        one_hot = (labels[:, None] == classes).to(dtype)
        # Shares of a patch rather than its first pixel: outlines keep their place.
        return (
            functional.avg_pool2d(one_hot, self.config.patch_size) if self.config.patch_size > 1 else one_hot
        )

    def check_classes(self, label_map: Tensor) -> None:
        """Raise ConditionError for a class that the model does not have."""
        known = self.config.num_classes
        low, high = int(label_map.min()), int(label_map.max())
        if low < DROPPED or high >= known:
            wrong = high if high >= known else low
            raise ConditionError(
                f"label_map: class {wrong} found; the model knows 0 to {known - 1}, "
                f"and {DROPPED} for a dropped label"
            )

    def modulate(self, label_map: Tensor) -> Modulation:
        """Scale and shift of every SPADE normalisation, to be given to `forward` instead of the label map."""
        one_hot = self.one_hot(label_map, self.out[2].weight.dtype)
        return [module.modulation(one_hot) for module in self._spades]

    def modulation_bytes(self, batch: int) -> int:
        """Memory that `modulate` takes for a batch, in bytes of float32."""
        side = self.config.image_size // self.config.patch_size
        values = sum(2 * spade.norm.num_channels * (side // spade.downsample) ** 2 for spade in self._spades)
        return 4 * batch * values

    def forward(self, x: Tensor, timesteps: Tensor, label_map: Tensor | Modulation) -> Tensor:
        """Predict the noise, or v, of a noisy image: what the weights were trained for.

        Parameters
        ----------
        x
            Noisy images, float (B, in_channels, H, W).
        timesteps
            Steps 0 to 999, (B,).
        label_map
            Integer classes (B, H, W), or what `modulate` made of them.

        Returns
        -------
        Tensor
            (B, out_channels, H, W); with a learned variance the second half says where it lies between its
            bounds, -1 to 1 (Nichol & Dhariwal 2021, equation 15).

        Raises
        ------
        ConditionError
            The label map's size is not the image's, or, on a processor, a class is out of range.
        """
        from diffusers.models.embeddings import get_timestep_embedding

        condition = label_map
        if torch.is_tensor(label_map):
            if label_map.shape[0] != x.shape[0] or label_map.shape[1:] != x.shape[2:]:
                raise ConditionError(
                    f"label_map: {tuple(label_map.shape)} does not belong to images of "
                    f"{(x.shape[0], *x.shape[2:])}; resize it (nearest) to the image's size"
                )
            condition = self.one_hot(label_map, x.dtype)
        waves = get_timestep_embedding(
            timesteps, self.config.model_channels, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        embedding = self.time_embed(waves.to(x.dtype))
        h, skips = functional.pixel_unshuffle(x, self.config.patch_size), []
        for block in self.input_blocks:
            h = block(h, embedding, condition)
            skips.append(h)
        h = self.middle_block(h, embedding, condition)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, condition)
        return functional.pixel_shuffle(self.out(h), self.config.patch_size)

"""The text-blind reference: MONAI's U-Net on the same images, with the structure as output channel.

It takes no words, so that a vision-language model which does no better has gained nothing from its words. Its
interface is that of the vision-language models as far as training uses it: token ids are ignored.

The network (Kerfoot et al. 2018; strided convolutions down, transposed ones up, batch norm, PReLU) always
begins from random weights and trains in a minute on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from echovlsm import STRUCTURES
from echovlsm.base import files, paths
from echovlsm.models.base import normalised
from echovlsm.models.common import ModelError
from echovlsm.models.weights import write_network

MODEL_TYPE = "reference-unet"
CHANNELS: tuple[int, ...] = (16, 32, 64, 64, 128)
IMAGE_MEAN: float = 0.2
IMAGE_STD: float = 0.2
"""Rounded mean and spread of grey values (0-1) of echocardiograms, whose sector fills half of the image."""


class ReferenceUNet(nn.Module):
    """U-Net with one output channel a structure, called like a vision-language model.

    Parameters
    ----------
    image_size
        Side in pixels of the images it is meant for; others work where their sides are multiples of
        2 ** (levels - 1), so 16 by default.
    channels
        Width of each level; each level but the first halves the image.
    residual_units
        Convolutions in each of MONAI's residual units; 0 for one plain convolution a level.

    Raises
    ------
    ModelError
        `image_size` is not a multiple of what the levels need, or there are fewer than two levels.
    """

    name = "unet"
    encoders = "unfrozen"

    def __init__(
        self, image_size: int = 96, channels: Sequence[int] = CHANNELS, residual_units: int = 0
    ) -> None:
        from monai.networks.nets import UNet  # slow to import

        super().__init__()
        self.image_size, self.channels = int(image_size), tuple(int(width) for width in channels)
        self.residual_units = int(residual_units)
        if len(self.channels) < 2:
            raise ModelError(f"channels: {self.channels} are too few; a U-Net needs two levels at least")
        self._check_size(self.image_size, self.image_size, "image_size")
        # image and weights with channels last are a fifth faster on a CPU; the numbers stay the same
        self.network = UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=len(STRUCTURES),
            channels=self.channels,
            strides=(2,) * (len(self.channels) - 1),
            num_res_units=self.residual_units,
            norm="batch",
        ).to(memory_format=torch.channels_last)

    # -- making, loading and saving -----------------------------------------------------------------

    @classmethod
    def fresh(
        cls,
        image_size: int = 96,
        channels: Sequence[int] = CHANNELS,
        seed: int = 0,
        residual_units: int = 0,
    ) -> ReferenceUNet:
        """Build with random weights that depend on `seed` alone; torch's own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(image_size, channels, residual_units)

    @classmethod
    def from_pretrained(cls, weights: str | Path, encoders: str = "unfrozen") -> ReferenceUNet:
        """Load from a folder that `save_pretrained` wrote.

        Raises
        ------
        ModelError
            `encoders` is not ``unfrozen`` (there is nothing to freeze), the folder lacks a file, holds
            another kind of model, or its tensors do not fit its config.
        """
        if encoders != "unfrozen":
            raise ModelError(f"encoders: {encoders!r} has no meaning for unet, which has none; use unfrozen")
        folder = paths.resolve(weights)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ModelError(f"weights: {folder} has no {name}; give a folder of save_pretrained")
        config = files.read_json(folder / "config.json", ModelError, "copy the folder again")
        if config.get("model_type") != MODEL_TYPE:
            raise ModelError(
                f"weights: {folder} holds a {config.get('model_type')!r} model, not {MODEL_TYPE}"
            )
        if config.get("structures") != list(STRUCTURES.values()):
            raise ModelError(
                f"weights: {folder} segments {config.get('structures')}, not {list(STRUCTURES.values())}"
            )
        try:
            model = cls(config["image_size"], config["channels"], config["residual_units"])
        except ModelError:
            raise
        except Exception as error:  # a field that is absent or of another type
            raise ModelError(
                f"weights: {folder / 'config.json'} cannot be used ({type(error).__name__}: {error}); copy "
                "the folder again"
            ) from error
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"weights: {folder / 'model.safetensors'} does not fit its config.json: "
                f"{str(error).splitlines()[-1].strip()}; copy the folder again"
            ) from error
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`."""
        config = {
            "model_type": MODEL_TYPE,
            "image_size": self.image_size,
            "channels": list(self.channels),
            "residual_units": self.residual_units,
            "structures": list(STRUCTURES.values()),
        }
        write_network(folder, self, config)

    # -- the vision-language models' interface ------------------------------------------------------

    def parts(self) -> dict[str, nn.Module]:
        """The model's parts by name, for a table of parameters."""
        return {"network": self.network, "all": self}

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Zeros as token ids and ones as attention mask, both int64 (N, 1): the words are not read."""
        return torch.zeros((len(texts), 1), dtype=torch.int64), torch.ones((len(texts), 1), dtype=torch.int64)

    def normalise(self, images: Tensor | np.ndarray) -> Tensor:
        """Grey images uint8 (B, H, W) or colour uint8 (B, 3, H, W) to float32 (B, 3, H, W), normalised."""
        return normalised(images, IMAGE_MEAN, IMAGE_STD, next(self.parameters()).device)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        repeats: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Segment all structures, whatever the prompts say.

        Parameters
        ----------
        pixel_values
            Normalised images, float (B, 3, H, W).
        input_ids, attention_mask, repeats
            Ignored but for the shape of `input_ids`: int64 (B, S, L) with one prompt a structure, in order.

        Returns
        -------
        Tensor
            Logits (B, S, H, W), S in the order of `echovlsm.STRUCTURES`.

        Raises
        ------
        ModelError
            A side that the levels cannot halve, or prompts that are not one a structure: the reference
            cannot know which structure a single prompt means.
        """
        self._check_size(*pixel_values.shape[-2:], "pixel_values")
        if input_ids is not None and (input_ids.ndim != 3 or input_ids.shape[1] != len(STRUCTURES)):
            raise ModelError(
                f"input_ids: shape {tuple(input_ids.shape)}; the text-blind reference needs (images, "
                f"{len(STRUCTURES)}, tokens), one prompt a structure in the order of echovlsm.STRUCTURES"
            )
        grey = pixel_values.mean(dim=1, keepdim=True).contiguous(memory_format=torch.channels_last)
        return self.network(grey)

    @torch.no_grad()
    def segment(self, images: np.ndarray | Tensor, batch_size: int = 64) -> np.ndarray:
        """Label images.

        Parameters
        ----------
        images
            Grey images uint8 (N, H, W) of any size; they are brought to `image_size` and back.
        batch_size
            Images at a time.

        Returns
        -------
        numpy.ndarray
            uint8 (N, H, W): the label of the structure with the highest logit where that is above 0, else 0.

        Raises
        ------
        ModelError
            The images are not uint8 (N, H, W).
        """
        grey = torch.as_tensor(images)
        if grey.ndim != 3 or grey.dtype != torch.uint8:
            raise ModelError(f"images: uint8 (N, H, W) expected, not {grey.dtype} {tuple(grey.shape)}")
        side, native = (self.image_size, self.image_size), tuple(grey.shape[-2:])
        values = torch.tensor(list(STRUCTURES), dtype=torch.uint8)
        training = self.training
        self.eval()
        found = []
        for batch in grey.split(batch_size):
            if native != side:
                small = functional.interpolate(
                    batch[:, None].float(), size=side, mode="bilinear", antialias=True, align_corners=False
                )
                batch = small[:, 0].round().clamp(0, 255).to(torch.uint8)  # as Triplets prepares them
            logits = self(self.normalise(batch)).float().cpu()
            if native != side:
                logits = functional.interpolate(logits, size=native, mode="bilinear", align_corners=False)
            best, where = logits.max(dim=1)
            found.append(torch.where(best > 0, values[where], 0))
        self.train(training)
        return torch.cat(found).numpy() if found else np.zeros(grey.shape, np.uint8)

    def _check_size(self, height: int, width: int, what: str) -> None:
        step = 2 ** (len(self.channels) - 1)
        if height % step or width % step or not height or not width:
            raise ModelError(
                f"{what}: {height} x {width} pixels; {len(self.channels)} levels need multiples of {step}"
            )


Reference = ReferenceUNet

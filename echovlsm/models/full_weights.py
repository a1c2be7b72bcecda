"""Folders of weights of full size: ``echovlsm weights --help``.

``random`` writes a CLIPSeg or CRIS of the released size with random weights, to try the way of the full study
without a download. ``convert`` makes a folder from an original file: a CRIS checkpoint, or CLIP's RN50, on
which a fresh CRIS is built. The released CLIPSeg, ``CIDAS/clipseg-rd64-refined``, needs neither.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import torch
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from echovlsm.base import files, paths
from echovlsm.models.clipseg import CLIPSeg
from echovlsm.models.common import ModelError
from echovlsm.models.cris import CRIS
from echovlsm.models.cris_config import CRISConfig
from echovlsm.models.weights import read_tensors

RELEASED: tuple[str, ...] = ("clipseg", "cris")
"""Models of which there is a released size."""

CLIPSEG_SIZE = 352
"""Side in pixels of the images for which CLIPSeg was released."""

ALL_MERGES = 48894
"""Merges of CLIP's own tokenizer, whose vocabulary has 49,408 tokens."""

TOKENIZER = "data/weights/clipseg-tiny"
"""A tokenizer that is always here: CLIP's, cut to its most frequent merges."""


def clipseg_config() -> CLIPSegConfig:
    """The configuration of ``CIDAS/clipseg-rd64-refined``: what differs from Transformers' defaults.

    ViT-B/16 at 224 pixels, the decoder reduced to 64 dimensions, transposed convolutions in its head.
    """
    return CLIPSegConfig(
        vision_config={"patch_size": 16, "image_size": 224},
        reduce_dim=64,
        extract_layers=[3, 6, 9],
        use_complex_transposed_convolution=True,
    )


def random_model(name: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> CLIPSeg | CRIS:
    """A model of the released size with random weights that depend on `seed` alone.

    Parameters
    ----------
    name
        ``clipseg`` (150.7 million parameters, 352 pixels) or ``cris`` (146.8 million, 416 pixels).
    tokenizer
        Its words; one that knows fewer tokens than CLIP's leaves rows of the embedding unused.
    seed
        Seed of the weights; torch's own generator is left as it was.

    Raises
    ------
    ModelError
        Another name, or a tokenizer with more tokens than the text encoder has rows.
    """
    if name not in RELEASED:
        raise ModelError(f"model: {name!r} is not known; choose one of {', '.join(RELEASED)}")
    rows = CRISConfig().vocab_size
    if len(tokenizer) > rows:
        raise ModelError(f"tokenizer: {len(tokenizer)} tokens, but the text encoder has {rows} rows")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "cris":
            return CRIS(CRISConfig(), tokenizer)
        config = clipseg_config()
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config.text_config, key, getattr(tokenizer, key))
        return CLIPSeg(CLIPSegForImageSegmentation(config), tokenizer, image_size=CLIPSEG_SIZE)


def read_original(
    file: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
    config: CRISConfig | None = None,
    authors: bool = False,
) -> CRIS:
    """CRIS from an original file: its own checkpoint, or CLIP's RN50 under a fresh neck and decoder.

    `seed` decides what is fresh; without a `config` it is that of the study. With `authors` padding and
    enlarging are those of the study's code (`echovlsm.models.cris`), which its numbers were made with.

    Raises
    ------
    ModelError
        The file cannot be read safely, or its tensors are neither of the two.
    """
    if authors:
        config = replace(config or CRISConfig(), padding="authors", enlarging="authors")
    if any(key.startswith("backbone.") for key in read_tensors(file)):
        return CRIS.from_checkpoint(file, config, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CRIS.from_clip(file, config, tokenizer)


def build_tokenizer(merges_file: str | Path, merges: int = 4096) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer cut to its first (most frequent) merges.

    Parameters
    ----------
    merges_file
        ``bpe_simple_vocab_16e6.txt.gz`` of OpenAI's CLIP (MIT licence), as open_clip_torch ships it.
    merges
        How many of its merges to keep; CLIP itself keeps 48,894.
    """
    lines = gzip.decompress(Path(merges_file).read_bytes()).decode().split("\n")
    pairs = [tuple(line.split()) for line in lines[1 : merges + 1]]
    alphabet = list(bytes_to_unicode().values())
    symbols = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet), *("".join(pair) for pair in pairs)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77)


def read_tokenizer(tokenizer: str | Path = TOKENIZER, merges: Path | None = None) -> PreTrainedTokenizerBase:
    """CLIP's tokenizer from a folder or hub id, or the whole of it from OpenAI's file of merges.

    Raises
    ------
    ModelError
        The folder, hub id or file is not there.
    """
    if merges is not None:
        if not merges.is_file():
            raise ModelError(f"--merges: {merges} does not exist; give CLIP's bpe_simple_vocab_16e6.txt.gz")
        return build_tokenizer(merges, ALL_MERGES)
    folder, remedy = paths.resolve(tokenizer), "a hub id such as openai/clip-vit-base-patch32, or --merges"
    if folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "merges.txt")):
        # Transformers would make one that knows no word
        raise ModelError(f"--tokenizer: {folder} has no tokenizer.json; give another folder, {remedy}")
    try:
        return CLIPTokenizer.from_pretrained(str(folder if folder.is_dir() else tokenizer))
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ModelError(
            f"--tokenizer: {tokenizer} cannot be read ({why}); give a folder, {remedy}"
        ) from error


def write_folder(model: CLIPSeg | CRIS, folder: str | Path) -> Path:
    """Write the model's folder, whole or not at all; where it lies.

    Raises
    ------
    ModelError
        Something is there already.
    """
    target = paths.resolve(folder)
    if target.exists():
        raise ModelError(f"{target}: is there already; name another folder, or delete it")
    with files.appearing(target) as partial:
        model.save_pretrained(partial)
    return target

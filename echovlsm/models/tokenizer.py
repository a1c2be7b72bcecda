"""A byte-pair tokenizer in CLIP's layout."""

from __future__ import annotations

import gzip
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode


def build_tokenizer(merges_file: Path, merges: int = 4096) -> CLIPTokenizer:
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

"""Models: a name and a folder of weights in, a callable network with its tokenizer out (notebook 04).

`model(pixel_values (B, 3, H, W), input_ids (B, L), attention_mask) -> logits (B, H, W)`. Begin with `load`.
One file is one model (`common` tells which): `clipseg` and `cris` are the paper's, `unet` has no words.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["adapters", "full_weights"],
    submod_attrs={
        "clipseg": ["CLIPSeg"],
        "common": ["MODELS", "REFERENCES", "ModelError"],
        "cris": ["CRIS"],
        "cris_config": ["CRISConfig"],
        "loading": ["load"],
        "unet": ["ReferenceUNet"],
    },
)

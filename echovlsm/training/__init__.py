"""Training: frames and a model in, a history of epochs and a trained model out (notebook 04).

`triplets` pairs images, prompts and masks; `loop.fit` trains; `strategies` says what is learned from, and in
what order. Begin with `triplets`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["devices", "strategies"],
    submod_attrs={
        "checkpoints": ["Checkpoints"],
        "loop": ["fit", "make_loss", "make_optimiser", "predict"],
        "triplets": ["Triplets", "hold_out", "make_triplets"],
    },
)

"""Phantom hearts: a seed in, ultrasound images with exact labels out (notebook 01).

A patient (`patient`) gets an anatomy (`anatomy`); echoes of a beam (`beam`) make the
image (`acoustics`). Begin with `cohort.simulate`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["acoustics", "anatomy", "beam"],
    submod_attrs={
        "cohort": ["draw_cohort_patient", "simulate", "write_phantom_cohort"],
    },
)

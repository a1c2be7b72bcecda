"""Phantom hearts: a seed in, ultrasound images with exact labels out (notebook 01).

A patient's causes (`draw_cohort_patient`) make an anatomy (`anatomy`), this and a recording make echoes under
the beams (`acoustics`), and these the image (`beam`). `simulate` takes all steps; begin with it.
`versions` says which phantoms there are, and what may be left out of one.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["versions"],
    submod_attrs={
        "anatomy": ["Tissue"],
        "cohort": ["draw_cohort_patient", "simulate", "write_phantom_cohort"],
    },
)

"""Cohorts: a folder of echocardiograms in, a frames table and uint8 images and labels out (notebook 01).

In: CAMUS in either release, our own cohorts, the released synthetic one. Out: one table, one row per image.
Begin with `read`; `check` has the layouts, `write` makes a cohort, `sectors` what diffusion draws from.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["masks", "sectors"],
    submod_attrs={
        "files": ["CohortError"],
        "images": ["load_image", "load_labels", "resize_image", "resize_labels"],
        "read": ["check_cohort", "cohort_hash", "is_synthetic", "legacy_testing_map", "read_cohort"],
        "released": ["is_released"],
        "write": ["write_cohort"],
    },
)

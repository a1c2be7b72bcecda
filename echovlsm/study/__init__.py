"""The study: parameters in, executed notebooks, finished grids, recorded runs, answers out (06, 09, 10).

`begin` begins a notebook, `execution` executes one; `grid` is the grid of chapter 06; `queue` carries out the
runs on real hearts that `plan` lists, `answers` says what their records say. Begin with `plan`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        *("answers", "dry_run", "execution", "grid", "parameters", "pretrained", "queue"),
        *("speed", "warm"),
    ],
    submod_attrs={"page": ["RunFolder", "begin"]},
)

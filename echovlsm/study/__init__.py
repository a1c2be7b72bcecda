"""The study: parameters in, executed notebooks, finished grids, recorded runs, answers out (06, 09, 10).

`page.begin` begins a notebook, `execution` executes one, `grid` is a table of runs; `queue` carries out the
runs on real hearts that `plan` lists, `answers` reads their records. Begin with `plan`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "answer_figures",
        "answer_text",
        "answers",
        "benchmark_figures",
        "dry_run",
        "execution",
        "freshness",
        "grid",
        "grid_figures",
        "parameters",
        "plan",
        "pretrained",
        "queue",
        "real_figures",
        "rehearsal",
        "warm",
    ],
    submod_attrs={
        "page": ["RunFolder", "begin"],
        "parameters": ["may_draw_phantom"],
    },
)

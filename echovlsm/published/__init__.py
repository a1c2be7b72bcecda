"""The paper's own numbers: its tables and per-image scores in, tests and verdicts out (notebook 07).

Begin with `scores`; `statistics` tests them (`headlines` the two of the text), `claims` holds what the paper
says against them (`evidence`, claim by claim).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["claims", "code", "figures", "runs", "scores", "statistics", "tables"],
    submod_attrs={
        "scores": ["load_scores", "load_tables"],
    },
)

"""Evaluation: predicted and true masks in, scores and what may be concluded from them out (notebook 05).

Begin with `scoring`; `statistics` has tests and intervals, `clinical` volumes, `words` false words.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["clinical", "scoring", "statistics"],
    submod_attrs={
        "runs": ["evaluate_run", "structure_masks"],
        "scoring": ["score", "score_table", "to_mask"],
        "statistics": ["bootstrap_interval", "epochs_to_reach", "paired_test", "summary_table"],
        "words": ["word_effects"],
    },
)

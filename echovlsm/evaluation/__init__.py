"""Evaluation: predicted and true masks in, scores and what may be concluded from them out (notebook 05).

Begin with `scoring`, where a new score goes. `predictions` scores a model's answers, `statistics` makes
tables, `inference` tests and intervals, `clinical` volumes; `words` asks with false words.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["predictions", "scoring", "statistics"],
    submod_attrs={
        "inference": ["bootstrap_interval", "paired_test"],
        "runs": ["evaluate_run"],
        "scoring": ["dice", "score", "score_table"],
        "statistics": ["epochs_to_reach", "summary_table"],
        "words": ["word_effects"],
    },
)

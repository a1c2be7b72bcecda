"""The answers of the study on real hearts: records in; tables, sentences and figures out (notebook 09).

`records` reads the queue's records and computes, `words` tells, `figures` draws; `recorded` has the main run,
volumes and rehearsals. Begin with `Records`. Of what is not on record nothing is said.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "records": [
            *("Records", "budget_gains", "budget_points", "convergence", "doubling", "patients_saved"),
            *("study_cells", "table_cells", "table_gains", "worth_of_words"),
        ],
        "words": [
            *("headline", "learning_curves", "left_out", "paper_shape", "readable", "what_we_saw"),
            *("readable_steps", "recipe_sentences"),
        ],
        "figures": ["plot_budget", "plot_curves", "plot_doubling", "plot_gains", "plot_worth"],
        "recorded": [
            *("by_view", "compare_ends", "impossible", "main_sentence", "plot_agreement", "read_record"),
            *("rehearsals", "yardstick"),
        ],
    },
)

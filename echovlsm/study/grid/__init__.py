"""The grid of chapter 06: models x prompts x strategies x encoders x seeds, each cell one run.

A grid is a file of `notebooks/grids`. `cells` says which cells it has, what each needs and is likely to cost;
Snakemake runs them (`snakemake grid`); `results` makes of them one table, differences, sentences and figures.
Begin with `read_grid`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cells": ["AXES", "Cell", "cost_line", "estimate", "read_grid", "runs_of"],
        "results": [
            *("at_equal_steps", "collect", "costs", "gains", "told_of_gains", "told_of_models"),
            *("plot_convergence", "plot_differences", "plot_prompt_matrices", "plot_union"),
            "plot_word_effects",
        ],
    },
)

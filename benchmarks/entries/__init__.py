"""The entries by name. Each is a function of `Settings` that gives pairs, rates and growths, one by one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from benchmarks.measure import Growth, Pair, Rate
from benchmarks.setups import Settings

NAMES: tuple[str, ...] = (
    *(
        "training",
        "loops",
        "augmentation",
        "cris",
        "scoring",
        "cohorts",
        "start",
        "diffusion",
        "arithmetic",
        "growth",
    ),
)
"""What `python -m benchmarks --only` knows, in the order in which all are run."""


def entry(name: str, settings: Settings) -> Iterator[Pair | Rate | Growth]:
    """Run an entry; its setting up is done when it is asked for the next item."""
    module = importlib.import_module(f"benchmarks.entries.{name}")
    return module.run(settings)

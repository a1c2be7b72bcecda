"""The explorer: a sentence and an image in, an outline out (notebook 08, and the published page).

Begin with `asking`; `view` is the widget, `export` the page that needs no Python, `sentences` what every
model is tried with.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["asking", "export", "sentences", "view"]
)

"""What every room stands on: whole files, paths, run folders, where a number came from, the cache, figures.

In: nothing of the study. Out: files that appear whole, `RunFolder`, `provenance`, the house style of figures.
Begin with `run_folder`; `rooms` says which room rests on which.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["cache", "figures", "files", "paths", "provenance", "rooms"],
    submod_attrs={"processes": ["in_order"], "run_folder": ["RunFolder"]},
)

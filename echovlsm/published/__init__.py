"""The paper's own numbers: its tables and per-image scores in, tests and verdicts out (notebooks 07 and 12).

Begin with `scores`; `statistics` tests them (`headlines` the two tests of the text), `claims` holds what the
paper says against them (`evidence`, claim by claim). `tables` words it for readers; `code` shows what the
released code computed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["claims", "code", "scores", "tables"],
    submod_attrs={"scores": ["load_scores", "load_tables"]},
)

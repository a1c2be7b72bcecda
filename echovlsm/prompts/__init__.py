"""Prompts: a frames table in, sentences that name a structure out (notebook 03).

The paper's levels P0 to P7 in both of its templates, and the word for a mask's shape. Begin with
`templates`; `shapes` shows step by step how a mask is named.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["shapes", "templates"],
    submod_attrs={
        "negatives": ["other_sentences"],
        "shapes": ["name_shape", "prompts_for"],
        "templates": ["attributes_of", "level_for", "make_prompt", "make_prompts"],
    },
)

"""Words for pages: values as Markdown shows them to the letter."""

from __future__ import annotations

import re


def plain(text: object) -> str:
    """A value as Markdown that shows it to the letter: no markup, HTML, role or edge of a table."""
    return re.sub(r"[<>&|`{}\[\]$*\\\n]", lambda found: f"&#{ord(found.group())};", str(text))

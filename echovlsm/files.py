"""Small files that other programs may have broken: read, or refused with one error that names the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import pandas as pd


def read_yaml(path: str | Path, error: type[Exception], remedy: str) -> dict[str, Any]:
    """The mapping in a YAML file; only plain values are built, never objects that the file names.

    Parameters
    ----------
    path
        A file that is there.
    error
        Kind of exception to raise.
    remedy
        What to do, for the end of the message.

    Raises
    ------
    Exception
        Of the kind `error`: no text, no YAML, a tag that asks for an object, or no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as broken:
        raise error(f"{path}: not readable as YAML ({_short(broken)}); {remedy}") from broken
    return _mapping(content, path, error, remedy)


def read_json(path: str | Path, error: type[Exception], remedy: str) -> dict[str, Any]:
    """The object in a JSON file; parameters and errors as for `read_yaml`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as broken:  # UnicodeDecodeError is a ValueError
        raise error(f"{path}: not readable as JSON ({_short(broken)}); {remedy}") from broken
    return _mapping(content, path, error, remedy)


def read_table(path: str | Path, error: type[Exception], remedy: str, columns: tuple[str, ...] = ()) -> Any:
    """A `.csv` or `.parquet` table that has `columns`; parameters and errors as for `read_yaml`.

    A last line of a `.csv` without its end of line counts as cut off: this project's writers end every line.
    """
    import pandas as pd

    path = Path(path)
    try:
        if path.suffix == ".parquet":
            table: pd.DataFrame = pd.read_parquet(path)
        else:
            with path.open("rb") as raw:
                raw.seek(-1, 2)
                if raw.read() != b"\n":
                    raise ValueError("the last line is cut off")
            table = pd.read_csv(path)
    except Exception as broken:  # the readers raise a dozen kinds
        raise error(f"{path}: no whole table ({_short(broken)}); {remedy}") from broken
    absent = [name for name in columns if name not in table]
    if absent:
        raise error(f"{path}: no column {', '.join(absent)}; {remedy}")
    return table


def _mapping(content: Any, path: str | Path, error: type[Exception], remedy: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        what = "empty" if content is None else f"a {type(content).__name__}"
        raise error(f"{path}: a mapping of names to values is needed, but it is {what}; {remedy}")
    return content


def _short(error: Exception) -> str:
    """The first line of an error, which may be long and end without a full stop."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__

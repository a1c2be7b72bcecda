"""Versions of the phantom, and the ingredients that may be left out of it.

An image depends on its seed, its version and what was left out, and on nothing else. `cohort.yaml` names both
under `parameters`; a cohort that names none is of version 1 and whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

VERSIONS: dict[int, str] = {
    1: "set by hand, after published ranges, the look of CAMUS and the mean areas of its structures",
    2: "version 1 with the beam of a simulated phased array (SIMUS); no further image or mask was used",
    3: "version 1 with sizes, their spread and grey levels around the heart as in CAMUS's training patients",
}
"""What each version is, and what it was tuned on."""

TUNED = 3
"""The version that rests on annotated hearts."""

INGREDIENTS: dict[str, str] = {
    "speckle": "speckle and the grain of the noise: both are their mean instead",
    "shadows": "dropout of walls along the beam, and shadows",
    "anatomy": "anatomical variation: every patient has one heart of mean size and shape",
    "gain": "variation of gain, dynamic range and depth: those of the mean recording",
    "context": "structures around the labelled ones: right heart, pericardium, lung, atrial walls, annulus",
}
"""What `without` may name: words for a table."""

ORIGIN = "EchoVLSM phantom simulator (echovlsm.phantom): no patient data"
"""Origin of every cohort that is drawn here."""


def check_making(size: int, version: int, without: Iterable[str]) -> None:
    """ValueError unless there are such a version and such ingredients, for images of enough rows."""
    if size < 32:
        raise ValueError(f"size={size}: a phantom needs at least 32 rows")
    if version not in VERSIONS:
        raise ValueError(f"version={version!r}: the phantom has versions {', '.join(map(str, VERSIONS))}")
    if isinstance(without, str):
        raise ValueError(f"without={without!r}: give a tuple of names, such as ({without!r},)")
    if unknown := [name for name in without if name not in INGREDIENTS]:
        raise ValueError(f"without={unknown[0]!r}: choose of {', '.join(INGREDIENTS)}")


def require_phantom(
    meta: Mapping[str, Any], version: int = 1, without: Iterable[str] = (), place: object = "cohort.yaml"
) -> None:
    """Refuse a phantom cohort of another version, or with other ingredients; other cohorts pass.

    Parameters
    ----------
    meta
        What ``cohort.yaml`` says: ``frames.attrs["meta"]`` of `echovlsm.cohort.read_cohort`.
    version, without
        What is wanted, as for `echovlsm.phantom.simulate`.
    place
        Names the cohort in the message.

    Raises
    ------
    ValueError
        It is another phantom.
    """
    if meta.get("kind") != "phantom" or not str(meta.get("origin", "")).startswith(ORIGIN):
        return
    made = meta.get("parameters") or {}
    found, wanted = (made.get("version", 1), sorted(made.get("without", ()))), (version, sorted(without))
    if found != wanted:
        raise ValueError(
            f"{place}: holds {_told(*found)}; {_told(*wanted)} was asked for: move it away or name another "
            "folder"
        )


def _told(version: int, without: list[str]) -> str:
    """A phantom in words, as in ``phantoms of version 1 without speckle``."""
    return f"phantoms of version {version}" + (f" without {' and '.join(without)}" if without else "")

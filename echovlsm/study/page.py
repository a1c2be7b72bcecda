"""A notebook's page: parameters checked, style and seeds set, its run folder, and what its figures carry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from echovlsm.base import RunFolder, figures, paths, provenance, rooms
from echovlsm.study.parameters import check_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler


HEADINGS: dict[str, str] = {
    "p_holm": "p (Holm)",
    "peak_memory_gib": "peak memory (GiB)",
    "mean_absolute": "mean absolute difference",
    "ours_seconds": "our way (s)",
    "plain_seconds": "plain way (s)",
    "before_seconds": "before (s)",
    "after_seconds": "after (s)",
    "seconds_least": "seconds for the least",
    "seconds_most": "seconds for the most",
    "exponent_end": "exponent at the end",
    "equal": "results",
}
"""Columns and rows whose names in code are not words, and what readers see."""


def begin(namespace: dict[str, Any], notebook: str) -> Page:
    """Begin a notebook: check its parameters, use the house style, fix threads and seeds.

    Parameters
    ----------
    namespace
        ``globals()`` of the notebook, in the cell after the one tagged `parameters`.
    notebook
        Its name, such as ``04_training``; your own may have any.

    Raises
    ------
    ParameterError
        A parameter is unknown or has a value that it cannot have; the message names all such.
    RunError
        This machine cannot compute in the precision asked for.
    """
    parameters = check_parameters(namespace)
    figures.use_style()
    precision = parameters.get("mixed_precision", parameters.get("sdm_precision", "no"))
    provenance.set_up(parameters.get("threads", 0), parameters.get("seed", 0), precision)
    return Page(notebook, parameters)


class Page:
    """What a notebook's cells share; made by `begin`.

    Attributes
    ----------
    parameters : dict
        Every parameter of the notebook.
    record : RunFolder
        Its run folder, once `open` has been called.
    """

    record: RunFolder

    def __init__(self, notebook: str, parameters: dict[str, Any]) -> None:
        self.notebook, self.parameters = notebook, parameters
        self._where = (parameters.get("scale", "full"), "no cohort", "real")

    @property
    def cohort(self) -> Path:
        """The folder of the parameter `cohort`."""
        return paths.resolve(self.parameters["cohort"])

    @property
    def note(self) -> str:
        """One line that figures and tables carry: scale, cohort, and what they must not be read as."""
        return figures.scale_note(*self._where)

    def of(self, cohort: str, kind: str, scale: str | None = None) -> None:
        """Say on which cohort (its name and kind) and at which scale what follows was made."""
        self._where = (scale or self._where[0], cohort, kind)

    def open(
        self,
        meta: Mapping[str, Any] | pd.DataFrame,
        run: str | Path = "",
        **known: Any,
    ) -> bool:
        """Open the notebook's run folder and put `meta`'s cohort on what follows.

        Parameters
        ----------
        meta
            The cohort's `name` and `kind`, or a frames table that carries them.
        run
            The folder where the parameter `run` names none; by default `runs/<profile>/<cohort>/<notebook>`.
        known
            What else belongs in `run.yaml` and must be equal in a run that is kept, such as `data_hash`.

        Returns
        -------
        bool
            Whether there is work to do.
        """
        about = dict(meta.attrs["meta"] if isinstance(meta, pd.DataFrame) else meta)
        self.of(about["name"], about["kind"], known.get("scale"))
        asked = self.parameters
        folder = (asked["profile"], *([self.cohort.name] if "cohort" in asked else []), self.notebook)
        self.record = RunFolder(asked.get("run") or run or Path("runs", *folder))
        return self.record.start(
            asked,
            redo=asked.get("redo", True),
            rooms=rooms.CHAPTERS.get(self.notebook, ()),
            cohort=about["name"],
            kind=about["kind"],
            **known,
        )

    def stamp(
        self, figure: Figure, cohort: str | None = None, kind: str | None = None, scale: str | None = None
    ) -> None:
        """Write scale and cohort under a figure, by default the page's; the last call on it."""
        own = zip((scale, cohort, kind), self._where, strict=True)
        figures.stamp(figure, *(usual if given is None else given for given, usual in own))

    def table(self, table: pd.DataFrame | Styler, caption: str = "", *, index: bool = True) -> Styler:
        """A table with its caption, and headings in words; the table itself stays as it is.

        `table` may be styled (``table.style.format("{:.3f}")``). Of the names of its columns and rows
        `HEADINGS` has some in words; in all others an underscore becomes a space.
        """
        style = table.style if isinstance(table, pd.DataFrame) else table
        style = style.format_index(_heading, axis="index") if index else style.hide(axis="index")
        style = style.format_index(_heading, axis="columns")
        return style.set_caption(caption) if caption else style


def _heading(name: Any) -> Any:
    """The name of a column or row in words; what is not text stays."""
    return HEADINGS.get(name, name.replace("_", " ")) if isinstance(name, str) else name

"""The explorer in JupyterLab: widgets over `asking.Explorer`.

ExplorerView(["data/cohorts/phantom-demo"]).widget
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd

from echovlsm import STRUCTURES
from echovlsm.base import figures, paths
from echovlsm.cohort import read_cohort
from echovlsm.evaluation import dice
from echovlsm.explorer.asking import Explorer, level_names, load_nets, trained_runs, zero_shot_name
from echovlsm.explorer.images import (
    LEAST_SHARE,
    Answer,
    ExplorerError,
    Key,
    encode,
    paint,
    share_outlined,
)

AT_ONCE = 150
"""Milliseconds within which an answer follows every key that is typed."""
OWN_WORDS = "your own words"
"""The entry of the level menu that says that the sentence was typed."""


def cohorts_here(folder: str | Path = "data/cohorts") -> list[str]:
    """Cohort folders made by this project that lie in a folder, as paths from the project's root."""
    found = sorted(file.parent for file in paths.resolve(folder).glob("*/cohort.yaml"))
    root = paths.project_root()
    return [str(path.relative_to(root) if path.is_relative_to(root) else path) for path in found]


class Side:
    """One half of the view: a model, a sentence, the answer and its Dice."""

    def __init__(self, title: str) -> None:
        wide = widgets.Layout(width="98%")
        self.net = widgets.Dropdown(description="model", layout=wide)
        self.level = widgets.Dropdown(description="prompt", layout=wide)
        self.sentence = widgets.Text(description="sentence", layout=wide, continuous_update=False)
        self.image = widgets.Image(format="png", layout=widgets.Layout(width="98%", max_width="560px"))
        self.score = widgets.HTML()
        parts = [widgets.HTML(f"<b>{title}</b>"), self.net, self.level, self.sentence, self.score, self.image]
        self.box = widgets.VBox(parts, layout=widgets.Layout(width="50%"))
        self.answer: Answer | None = None


class ExplorerView:
    """Pick an image, give a sentence, see what a model outlines; two models or sentences side by side.

    Parameters
    ----------
    cohorts
        Cohort folders to choose from; the first is shown. ExplorerError without any.
    split
        Split whose images are offered; empty: all.
    run
        Path of the run to start with; empty: the first of `trained_runs`.
    model, weights
        Model and weights that are shown where there is no run, and as zero-shot.
    """

    def __init__(
        self,
        cohorts: Sequence[str | Path],
        runs_folder: str | Path = "runs",
        *,
        split: str = "test",
        run: str = "",
        model: str = "clipseg",
        weights: str = "data/weights/clipseg-tiny",
    ) -> None:
        if not cohorts:
            raise ExplorerError("cohorts: none here; run notebooks/01_cohort.ipynb, or name a cohort folder")
        self.split, self.model, self.weights = split, model, weights
        self.runs = trained_runs(runs_folder)
        self.message = widgets.HTML()
        first = self.runs[self.runs["path"] == str(paths.resolve(run))] if run else self.runs[:1]
        self._nets: dict[str, Any] = {}
        self._busy = False
        self._ranked: pd.DataFrame | None = None
        self._place = -1
        self._make_controls([str(cohort) for cohort in cohorts])
        self._open_cohort()
        start = "" if first.empty else str(first.iloc[0]["name"])
        self._offer_nets(start)
        for side in (self.left, self.right):
            self._offer_levels(side, str(first.iloc[0]["prompt"]) if start else "P1")
        self._watch()
        if not start:
            self.message.value = (
                "There is no trained run yet: this is the model as it was before training. "
                "Run notebooks 01 and 04, then this cell again."
            )
        self.refresh()

    # -- building -----------------------------------------------------------------------------------

    def _make_controls(self, cohorts: list[str]) -> None:
        self.cohort = widgets.Dropdown(description="cohort", options=cohorts)
        self.patient = widgets.Combobox(description="patient", ensure_option=True, continuous_update=False)
        self.view = widgets.ToggleButtons(description="view")
        self.phase = widgets.ToggleButtons(description="phase")
        self.structure = widgets.ToggleButtons(
            description="structure",
            options=[(figures.SHORT_NAMES[name], name) for name in STRUCTURES.values()],
        )
        self.threshold = widgets.FloatSlider(0.5, min=0.05, max=0.95, step=0.05, description="threshold")
        self.layer = widgets.ToggleButtons(
            description="show", options=["outline", "overlay", "probability", "image only"]
        )
        self.reference = widgets.Checkbox(True, description="reference contour (white)")
        self.next_worst = widgets.Button(description="next worst case", icon="step-forward")
        self.restart_worst = widgets.Button(description="worst of all", icon="fast-backward")
        self.save = widgets.Button(description="save the figure", icon="save")
        for control in (self.view, self.phase, self.structure, self.layer):
            control.style.button_width = "auto"
        self.left, self.right = Side("Left"), Side("Right")
        row = widgets.HBox
        wrap = widgets.Layout(flex_flow="row wrap")
        self.widget = widgets.VBox(
            [
                row([self.cohort, self.patient], layout=wrap),
                row([self.view, self.phase, self.structure], layout=wrap),
                row([self.threshold, self.layer, self.reference], layout=wrap),
                row([self.restart_worst, self.next_worst, self.save], layout=wrap),
                self.message,
                row([self.left.box, self.right.box]),
            ]
        )

    def _open_cohort(self) -> None:
        frames = read_cohort(paths.resolve(self.cohort.value))
        chosen = frames[frames["split"] == self.split] if self.split else frames
        self._nets = self._nets or load_nets(None, self.model, self.weights)
        self.explorer = Explorer(frames if chosen.empty else chosen, self._nets)
        self._ranked = None
        patients = list(dict.fromkeys(patient for patient, _, _ in self.explorer.keys))
        self.patient.options = patients
        self.patient.value = patients[0]
        self._offer_views()

    def _offer_views(self) -> None:
        have = [key for key in self.explorer.keys if key[0] == self.patient.value]
        for control, place in ((self.view, 1), (self.phase, 2)):
            options = list(dict.fromkeys(key[place] for key in have))
            if list(control.options) != options:
                control.options = options
                control.value = options[0]

    def _offer_nets(self, start: str) -> None:
        untrained = zero_shot_name(self.weights)
        names = [*self.runs["name"], untrained]
        for side, name in ((self.left, start or untrained), (self.right, untrained)):
            side.net.options = names
            side.net.value = name

    def _offer_levels(self, side: Side, level: str) -> None:
        names = level_names()
        offered = [(names[name], name) for name in self.explorer.levels]
        side.level.options = [*offered, (OWN_WORDS, OWN_WORDS)]
        side.level.value = level if level in self.explorer.levels else "P1"

    def _watch(self) -> None:
        self.cohort.observe(self._on_cohort, "value")
        self.patient.observe(self._on_patient, "value")
        for control in (self.view, self.phase, self.structure, self.threshold, self.layer, self.reference):
            control.observe(self.refresh, "value")
        for side in (self.left, self.right):
            side.net.observe(self.refresh, "value")
            side.level.observe(self.refresh, "value")
            side.sentence.observe(self._on_words(side), "value")
        for control in (self.structure, self.left.net, self.left.level):
            control.observe(self._on_order, "value")
        self.next_worst.on_click(lambda _: self.step_worst())
        self.restart_worst.on_click(lambda _: self.step_worst(restart=True))
        self.save.on_click(lambda _: self.save_figure())

    # -- events -------------------------------------------------------------------------------------

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """While controls are set by the program, nothing is drawn."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    def _on_cohort(self, _: Any) -> None:
        with self._quiet():
            self._open_cohort()
        self.refresh()

    def _on_patient(self, _: Any) -> None:
        with self._quiet():
            self._offer_views()
        self.refresh()

    def _on_order(self, _: Any) -> None:
        """What is worst must be found out again."""
        if not self._busy:
            self._ranked = None

    def _on_words(self, side: Side) -> Callable[[Any], None]:
        def typed(_: Any) -> None:
            if not self._busy:
                with self._quiet():
                    side.level.value = OWN_WORDS
                self.refresh()

        return typed

    @property
    def key(self) -> Key:
        """The image that is chosen."""
        return (str(self.patient.value), str(self.view.value), str(self.phase.value))

    def _net(self, name: str) -> str:
        """Load a model when it is first asked for."""
        if name not in self.explorer.nets:
            if name not in self._nets:
                run = self.runs[self.runs["name"] == name].iloc[0].to_dict()
                self._nets[name] = load_nets(run)[name]
            self.explorer.add(name, self._nets[name])
        return name

    def refresh(self, _: Any = None) -> None:
        """Ask both sides again and draw their answers."""
        if self._busy:
            return
        with self._quiet():
            for side in (self.left, self.right):
                self._refresh_side(side)

    def _refresh_side(self, side: Side) -> None:
        structure = self.structure.value
        try:
            if side.level.value != OWN_WORDS:
                side.sentence.value = self.explorer.prompt(self.key, structure, side.level.value)
            clock = time.perf_counter()
            net = self._net(side.net.value)
            side.answer = self.explorer.ask(self.key, side.sentence.value, net)
            milliseconds = 1000 * (time.perf_counter() - clock)
        except ValueError as error:  # a bad sentence is the reader's to mend: say so where he looks
            side.score.value = f"<span role='alert'>{html.escape(str(error))}</span>"
            return
        image = self.explorer.image(self.key)
        mask, truth = side.answer.mask(self.threshold.value), image.reference(structure)
        score = "no reference" if truth is None else f"<b>Dice {dice(mask, truth):.3f}</b>"
        if share_outlined(mask, image.pixels) < LEAST_SHARE:
            score = f"<b>nothing here by that name</b> · {score}"
        side.score.value = f"{score} · answered in {milliseconds:.0f} ms"
        side.sentence.continuous_update = milliseconds < AT_ONCE  # a slow model waits for Enter
        layer = self.layer.value
        painted = paint(
            image.pixels,
            figures.STRUCTURE_COLOURS[structure],
            mask=None if layer == "image only" else mask,
            truth=truth if self.reference.value else None,
            probability=side.answer.probability if layer == "probability" else None,
            fill=0.45 if layer == "overlay" else 0.0,
        )
        side.image.value = encode(painted, compress_level=1)

    def step_worst(self, *, restart: bool = False) -> None:
        """Show the image on which the left model does worst, then the next worst, and so on.

        The order is that of the structure chosen, with the prompts of the left side's level.
        """
        level = self.left.level.value if self.left.level.value != OWN_WORDS else "P1"
        if self._ranked is None or restart:
            self.message.value = "Asking about every image …"
            net = self._net(self.left.net.value)
            self._ranked = self.explorer.worst(self.structure.value, level, net, self.threshold.value)
            self._place = -1
        if self._ranked.empty:
            self.message.value = "This cohort has no reference masks: there is no worst case."
            return
        self._place = (self._place + 1) % len(self._ranked)
        row = self._ranked.iloc[self._place]
        with self._quiet():
            self.patient.value = row["patient"]
            self._offer_views()
            self.view.value, self.phase.value = row["view"], row["phase"]
        self.message.value = f"Number {self._place + 1} of {len(self._ranked)} from the worst."
        self.refresh()

    def save_figure(self, folder: str | Path = "runs/explorer") -> Path:
        """Save both sides as a figure with its stamp, and say where."""
        import matplotlib.pyplot as plt

        image, structure = self.explorer.image(self.key), self.structure.value
        truth = image.reference(structure)
        figure, axes = plt.subplots(1, 2, figsize=(9, 4.4))
        for axis, side in zip(axes, (self.left, self.right), strict=True):
            mask = np.zeros(image.pixels.shape, bool)
            if side.answer:
                mask = side.answer.mask(self.threshold.value)
            score = "" if truth is None else f"Dice {dice(mask, truth):.3f}"
            figures.show_image(axis, image.pixels, f"{side.net.value}\n“{side.sentence.value}”\n{score}")
            if truth is not None:
                figures.outline(axis, truth, "#FFFFFF")
            figures.outline(axis, mask, figures.STRUCTURE_COLOURS[structure])
        figures.heading(figure, f"{' '.join(self.key)}: {structure}, reference white")
        asked = self.runs["name"].isin([self.left.net.value, self.right.net.value])
        scales = set(self.runs.loc[asked, "scale"])
        meta = self.explorer.meta
        scale = ", ".join(sorted(map(str, scales))) or "demo"
        figures.stamp(figure, scale, meta.get("name", "?"), meta.get("kind", "?"))
        target = paths.resolve(folder)
        target.mkdir(parents=True, exist_ok=True)
        number = len(list(target.glob("*.png"))) + 1
        path = target / f"{number:03d}-{'-'.join(self.key)}.png"
        figure.savefig(path, dpi=160)
        plt.close(figure)
        self.message.value = f"Saved {html.escape(str(path))}"
        return path

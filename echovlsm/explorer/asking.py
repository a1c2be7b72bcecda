"""The explorer's logic: images, sentences, answers, and which trained model is asked. No widgets here.

An image is encoded once for each model and kept, so that another sentence costs only the text encoder and
the decoder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from echovlsm import models
from echovlsm.base import RunFolder, files, paths
from echovlsm.cohort import is_synthetic, load_image, load_labels, resize_image
from echovlsm.evaluation import dice
from echovlsm.explorer.images import Answer, CohortImage, ExplorerError, Key
from echovlsm.models import MODELS
from echovlsm.prompts import attributes_of, make_prompt, name_shape, templates

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
REMEMBER = 64
"""How many encodings are kept for each model."""
_COLUMNS = (
    *(
        "name",
        "path",
        "cohort",
        "kind",
        "model",
        "prompt",
        "strategy",
        "encoders",
        "seed",
        "scale",
        "profile",
    ),
    *("weights", "negatives", "val_dice"),
)


class Explorer:
    """Ask models about the images of one cohort.

    Parameters
    ----------
    frames
        Frames table of one cohort.
    nets
        Name to model; of each, `encode_image`, `text_features` and `decode` are used.
    missing
        What a prompt does where the cohort lacks an attribute: ``omit`` its clause or ``error``.

    Raises
    ------
    ExplorerError
        No images or no models.
    """

    def __init__(
        self, frames: pd.DataFrame, nets: Mapping[str, nn.Module], *, missing: templates.Missing = "omit"
    ) -> None:
        if frames.empty:
            raise ExplorerError("frames: no images; check the cohort and the split")
        if not nets:
            raise ExplorerError("nets: no model; give at least one")
        self.frames = frames.reset_index(drop=True)
        self.meta: dict[str, Any] = frames.attrs.get("meta") or {}
        self.synthetic = is_synthetic(frames)
        self.levels = templates.levels_of(self.synthetic)
        self.missing: templates.Missing = missing
        keys = zip(frames["patient"], frames["view"], frames["phase"], strict=True)
        self._rows: dict[Key, int] = {key: number for number, key in enumerate(keys)}
        self._nets = {name: net.eval() for name, net in nets.items()}
        self._images: OrderedDict[Key, CohortImage] = OrderedDict()
        self._encodings: OrderedDict[tuple[str, Key], Any] = OrderedDict()
        self._texts: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    @property
    def keys(self) -> list[Key]:
        """Patient, view and phase of every image, in the cohort's order."""
        return list(self._rows)

    @property
    def nets(self) -> list[str]:
        """Names of the models."""
        return list(self._nets)

    def net(self, name: str | None = None) -> nn.Module:
        """The model of a name, by default the first; ExplorerError where there is none."""
        return self._nets[self._known(name)]

    def add(self, name: str, net: nn.Module) -> None:
        """Add a model, or put another in its place."""
        for store in (self._encodings, self._texts):
            for key in [key for key in store if key[0] == name]:
                del store[key]
        self._nets[name] = net.eval()

    def image(self, key: Key) -> CohortImage:
        """The image of patient, view and phase; ExplorerError where the cohort has none."""
        if key not in self._rows:
            have = ", ".join(f"{view} {phase}" for patient, view, phase in self._rows if patient == key[0])
            patients = dict.fromkeys(patient for patient, _, _ in self._rows)
            hint = f"of {key[0]} there are {have}" if have else f"patients: {', '.join(list(patients)[:5])}…"
            raise ExplorerError(f"no image {' '.join(key)}; {hint}")
        return self._once(self._images, key, lambda: self._open(key))

    def _open(self, key: Key) -> CohortImage:
        row = self.frames.iloc[self._rows[key]]
        names = ("view", "phase", "sex", "age", "quality")
        known = {name: row[name] for name in names if name in row and not pd.isna(row[name])}
        labels = None if pd.isna(row["labels"]) else load_labels(row)
        return CohortImage(key, load_image(row), labels, known)

    def prompt(self, key: Key, structure: str, level: str, variant: int = 0) -> str:
        """The authors' sentence of this level for a structure of an image."""
        image = self.image(key)
        known = dict(image.known)
        truth = image.reference(structure)
        if "shape" in attributes_of(level, self.synthetic) and truth is not None and truth.any():
            known["shape"] = name_shape(truth)
        options = {"missing": self.missing, "synthetic": self.synthetic}
        return make_prompt(structure, level, variant, **known, **options)

    def ask(self, key: Key, text: str, net: str | None = None) -> Answer:
        """What a model (by default the first) outlines in an image when it reads `text`.

        Raises
        ------
        ExplorerError
            Unknown image or model.
        ModelError
            The text is longer than the model can read.
        """
        return self.ask_all(key, [text], net)[0]

    def ask_all(self, key: Key, texts: Sequence[str], net: str | None = None) -> list[Answer]:
        """What `ask` gives for each of these sentences, read at once."""
        probability = self._maps(key, texts, net).sigmoid()
        large = _resized(probability[None], self.image(key).pixels.shape)
        return [Answer(one) for one in large[0].numpy()]

    def small_map(self, key: Key, text: str, net: str | None = None) -> np.ndarray:
        """Probabilities at the model's own size, float32 (h, w): what `ask` enlarges."""
        return self._maps(key, [text], net)[0].sigmoid().numpy()

    def _maps(self, key: Key, texts: Sequence[str], net: str | None) -> torch.Tensor:
        """Logits float32 (N, h, w) at the model's own size."""
        import torch

        name = self._known(net)
        model = self._nets[name]
        with torch.no_grad():
            maps = self._once(self._encodings, (name, key), lambda: self._encode(model, key))
            condition = self._once(self._texts, (name, *texts), lambda: _read(model, texts))
            logits = model.decode(maps, condition).float()
            side = (model.image_size, model.image_size)
            if tuple(logits.shape[-2:]) != side:
                logits = _resized(logits[:, None], side)[:, 0]
        return logits.cpu()

    def _known(self, net: str | None) -> str:
        name = self.nets[0] if net is None else net
        if name not in self._nets:
            raise ExplorerError(f"no model {name!r}; there are: {', '.join(self._nets)}")
        return name

    def _encode(self, model: nn.Module, key: Key) -> Any:
        small = resize_image(self.image(key).pixels, model.image_size)
        return model.encode_image(model.normalise(small[None]))

    def _once(self, store: OrderedDict[Any, T], key: Any, make: Callable[[], T]) -> T:
        """What `store` holds under `key`, made if it is not there; the longest unused leaves."""
        if key not in store:
            store[key] = make()
            while len(store) > REMEMBER:
                store.popitem(last=False)
        store.move_to_end(key)
        return store[key]

    def worst(
        self, structure: str, level: str, net: str | None = None, threshold: float = 0.5
    ) -> pd.DataFrame:
        """Dice of every image that has a reference, the worst first: `patient, view, phase, dice`."""
        rows = []
        for key in self.keys:
            truth = self.image(key).reference(structure)
            if truth is not None:
                answer = self.ask(key, self.prompt(key, structure, level), net)
                rows.append((*key, dice(answer.mask(threshold), truth)))
        table = pd.DataFrame(rows, columns=["patient", "view", "phase", "dice"])
        return table.sort_values("dice", kind="stable", ignore_index=True)


def _read(model: nn.Module, texts: Sequence[str]) -> Any:
    device = next(model.parameters()).device
    return model.text_features(*(part.to(device) for part in model.tokenize(texts)))


def _resized(maps: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Maps (N, C, h, w) at another size (H, W), bilinear."""
    from torch.nn.functional import interpolate

    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def choose_images(frames: pd.DataFrame, count: int = 4, first: Key | None = None) -> list[Key]:
    """Images that differ: other patients, and as far as possible other views, phases and qualities.

    `first` comes first; by default the cohort's first.
    """
    chosen: list[tuple[str, ...]] = []
    columns = ("patient", "view", "phase", "quality")
    rows = [tuple(str(getattr(row, name, "")) for name in columns) for row in frames.itertuples()]

    def new(row: tuple[str, ...]) -> int:
        return sum(4 * (row[0] != other[0]) + sum(map(str.__ne__, row[1:], other[1:])) for other in chosen)

    while rows and len(chosen) < count:
        opening = first is not None and not chosen
        best = next(row for row in rows if row[:3] == first) if opening else max(rows, key=new)
        rows.remove(best)
        chosen.append(best)
    return [(patient, view, phase) for patient, view, phase, _ in chosen]


def level_names() -> dict[str, str]:
    """Prompt level to what it adds, for menus: ``P2 · view``."""
    names = {"P0": "P0 · nothing", "P1": "P1 · structure"}
    for before, level in pairwise(templates.LEVELS[1:]):
        added = set(attributes_of(level)) - set(attributes_of(before))
        names[level] = f"{level} · {', '.join(sorted(added))}"
    return names


# -- runs ---------------------------------------------------------------------------------------------------


def trained_runs(folder: str | Path = "runs") -> pd.DataFrame:
    """Complete runs of models that read sentences, below a folder; the best validation Dice first.

    Returns
    -------
    DataFrame
        `name` (unique, short), `path`, `cohort`, `kind`, `model`, `prompt`, `strategy`, `encoders`, `seed`,
        `scale`, `profile`, `weights` (that it started from), `negatives`, `val_dice`; NA where a record does
        not say it. Empty if there is none.
    """
    rows = []
    for file in sorted(paths.resolve(folder).rglob("run.yaml")):
        run = RunFolder(file.parent)
        if not run.complete or not list((run / "weights").glob("*.safetensors")):
            continue
        values = {"negatives": 0} | run.record.get("parameters", {}) | run.record
        if values.get("model") in MODELS:  # the reference without words cannot be asked
            values |= {"name": run.path.name, "path": str(run.path)}
            rows.append([values.get(name) for name in _COLUMNS])
    table = pd.DataFrame(rows, columns=_COLUMNS)
    table = table.sort_values("val_dice", ascending=False, kind="stable", ignore_index=True)
    twice = table["name"].duplicated(keep=False)
    table.loc[twice, "name"] = table["name"] + " (" + table["profile"].astype(str) + ")"
    still = table["name"].duplicated(keep=False)
    table.loc[still, "name"] = table.loc[still, "path"]
    return table


def choose_run(
    table: pd.DataFrame, run: str = "", profile: str = "", cohort: str = ""
) -> dict[str, Any] | None:
    """The run to open first: the named one, else the profile's best on the cohort; None without any.

    The best has the highest validation Dice of those that learned from the cohort (strategy `real`), or,
    without such a one, of all.

    Raises
    ------
    ExplorerError
        `run` names a folder that is no complete run with weights.
    """
    if run:
        found = table[table["path"] == str(paths.resolve(run))]
        if found.empty:
            listed = ", ".join(table["path"]) or "none yet; run notebooks/04_training.ipynb"
            raise ExplorerError(
                f"run: {paths.resolve(run)} is no complete run with weights; there are: {listed}"
            )
    else:
        found = table[(table["profile"] == profile) & (table["cohort"] == cohort)]
        real = found[found["strategy"] == "real"]
        found = found if real.empty else real
    return None if found.empty else found.iloc[0].to_dict()


def describe_choice(run: Mapping[str, Any] | None) -> str:
    """Which model a page shows, in words (Markdown)."""
    if run is None:
        return "No trained run here: the model is shown as it was before it saw an echocardiogram."
    value = run.get("val_dice")
    told = "" if value is None or value != value else f", best validation Dice {value:.3f}"
    words = {
        name: files.plain(run[name]) for name in ("model", "cohort", "prompt", "strategy", "seed", "scale")
    }
    return (
        f"{words['model']} trained on {words['cohort']} with {words['prompt']} prompts "
        f"(strategy {words['strategy']}, seed {words['seed']}, scale {words['scale']}{told})."
    )


def load_nets(
    run: Mapping[str, Any] | None, model: str = "clipseg", weights: str | Path = "data/weights/clipseg-tiny"
) -> dict[str, nn.Module]:
    """A run's model under its name, then the weights that it started from; without a run the given ones."""
    if run is None:
        return {zero_shot_name(weights): models.load(model, weights)}
    return {
        str(run["name"]): models.load(run["model"], Path(run["path"]) / "weights"),
        zero_shot_name(run["weights"]): models.load(run["model"], run["weights"]),
    }


def zero_shot_name(weights: str | Path) -> str:
    """How a model that was not trained on echocardiograms is called."""
    return f"zero-shot ({Path(str(weights)).name})"

"""The explorer's logic: images, sentences, answers. No widgets and no drawing library in here.

An image is encoded once for each model and kept, so that another sentence costs only the text encoder and
the decoder. `view` puts widgets on it, `static` its answers into the published book.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from echovlsm import models
from echovlsm.base import RunFolder, files, paths
from echovlsm.cohort import is_synthetic, load_image, load_labels, masks, resize_image
from echovlsm.evaluation import dice
from echovlsm.explorer.pictures import Answer, ExplorerError, Key, Picture
from echovlsm.models import MODELS
from echovlsm.prompts import LEVELS, Missing, attributes_of, levels_of, make_prompt, name_shape

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

T = TypeVar("T")


class Explorer:
    """Ask models about the pictures of one cohort.

    Parameters
    ----------
    frames
        Frames table of one cohort.
    nets
        Name to model; of each, `encode_image`, `text_features` and `decode` are used.
    missing
        What a prompt does where the cohort lacks an attribute: ``omit`` its clause or ``error``.
    remember
        How many encodings are kept for each model.

    Raises
    ------
    ExplorerError
        No pictures or no models.
    """

    def __init__(
        self,
        frames: pd.DataFrame,
        nets: Mapping[str, nn.Module],
        *,
        missing: Missing = "omit",
        remember: int = 64,
    ) -> None:
        if frames.empty:
            raise ExplorerError("frames: no pictures; check the cohort and the split")
        if not nets:
            raise ExplorerError("nets: no model; give at least one")
        self.frames = frames.reset_index(drop=True)
        self.frames.attrs = frames.attrs
        self.meta: dict[str, Any] = frames.attrs.get("meta") or {}
        self.synthetic = is_synthetic(frames)
        self.levels = levels_of(self.synthetic)
        self.missing: Missing = missing
        self.remember = remember
        keys = zip(frames["patient"], frames["view"], frames["phase"], strict=True)
        self._rows: dict[Key, int] = {key: number for number, key in enumerate(keys)}
        self._nets = {name: net.eval() for name, net in nets.items()}
        self._pictures: OrderedDict[Key, Picture] = OrderedDict()
        self._encodings: OrderedDict[tuple[str, Key], Any] = OrderedDict()
        self._texts: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    # -- what there is ------------------------------------------------------------------------------

    @property
    def keys(self) -> list[Key]:
        """Patient, view and phase of every picture, in the cohort's order."""
        return list(self._rows)

    @property
    def nets(self) -> list[str]:
        """Names of the models."""
        return list(self._nets)

    def net(self, name: str) -> nn.Module:
        """The model of a name.

        Raises
        ------
        ExplorerError
            There is none.
        """
        return self._nets[self._known(name)]

    def add(self, name: str, net: nn.Module) -> None:
        """Add a model, or put another in its place."""
        for store in (self._encodings, self._texts):
            for key in [key for key in store if key[0] == name]:
                del store[key]
        self._nets[name] = net.eval()

    def picture(self, key: Key) -> Picture:
        """The picture of patient, view and phase.

        Raises
        ------
        ExplorerError
            The cohort has no such picture.
        """
        if key not in self._rows:
            have = ", ".join(f"{view} {phase}" for patient, view, phase in self._rows if patient == key[0])
            patients = dict.fromkeys(patient for patient, _, _ in self._rows)
            hint = f"of {key[0]} there are {have}" if have else f"patients: {', '.join(list(patients)[:5])}…"
            raise ExplorerError(f"no picture {' '.join(key)}; {hint}")
        return self._once(self._pictures, key, lambda: self._open(key))

    def _open(self, key: Key) -> Picture:
        import pandas as pd

        row = self.frames.iloc[self._rows[key]]
        names = ("view", "phase", "sex", "age", "quality")
        known = {name: row[name] for name in names if name in row and not pd.isna(row[name])}
        labels = None if pd.isna(row["labels"]) else load_labels(row)
        return Picture(key, load_image(row), labels, known)

    def prompt(self, key: Key, structure: str, level: str, variant: int = 0) -> str:
        """The authors' sentence of this level for a structure of a picture."""
        picture = self.picture(key)
        known = dict(picture.known)
        truth = picture.reference(structure)
        if "shape" in attributes_of(level, self.synthetic) and truth is not None and truth.any():
            known["shape"] = name_shape(truth)
        options = {"missing": self.missing, "synthetic": self.synthetic}
        return make_prompt(structure, level, variant, **known, **options)

    # -- answers ------------------------------------------------------------------------------------

    def ask(self, key: Key, text: str, net: str | None = None) -> Answer:
        """What a model (by default the first) outlines in a picture when it reads `text`.

        Raises
        ------
        ExplorerError
            Unknown picture or model.
        ModelError
            The text is longer than the model can read.
        """
        return self.ask_all(key, [text], net)[0]

    def ask_all(self, key: Key, texts: Sequence[str], net: str | None = None) -> list[Answer]:
        """What `ask` gives for each of these sentences, read at once."""
        import torch

        probability = self._maps(key, texts, net).sigmoid()
        shape = self.picture(key).image.shape
        options = {"size": shape, "mode": "bilinear", "align_corners": False}
        large = torch.nn.functional.interpolate(probability[None], **options)
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
            maps = self._once(self._encodings, (name, key), lambda: self._encode(name, key))
            condition = self._once(self._texts, (name, *texts), lambda: self._read(name, texts))
            logits = model.decode(maps, condition).float()
            side = (model.image_size, model.image_size)
            if tuple(logits.shape[-2:]) != side:
                options = {"size": side, "mode": "bilinear", "align_corners": False}
                logits = torch.nn.functional.interpolate(logits[:, None], **options)[:, 0]
        return logits.cpu()

    def _known(self, net: str | None) -> str:
        name = self.nets[0] if net is None else net
        if name not in self._nets:
            raise ExplorerError(f"no model {name!r}; there are: {', '.join(self._nets)}")
        return name

    def _encode(self, name: str, key: Key) -> Any:
        model = self._nets[name]
        small = resize_image(self.picture(key).image, model.image_size)
        return model.encode_image(model.normalise(small[None]))

    def _read(self, name: str, texts: Sequence[str]) -> Any:
        model = self._nets[name]
        device = next(model.parameters()).device
        return model.text_features(*(part.to(device) for part in model.tokenize(texts)))

    def _once(self, store: OrderedDict[Any, T], key: Any, make: Callable[[], T]) -> T:
        """What `store` holds under `key`, made if it is not there; the longest unused leaves."""
        if key not in store:
            store[key] = make()
            while len(store) > self.remember:
                store.popitem(last=False)
        store.move_to_end(key)
        return store[key]

    def worst(
        self,
        structure: str,
        level: str,
        net: str | None = None,
        *,
        threshold: float = 0.5,
        keys: Iterable[Key] | None = None,
    ) -> pd.DataFrame:
        """Dice of every picture that has a reference, the worst first: `patient, view, phase, dice`."""
        import pandas as pd

        rows = []
        for key in self.keys if keys is None else keys:
            truth = self.picture(key).reference(structure)
            if truth is not None:
                answer = self.ask(key, self.prompt(key, structure, level), net)
                rows.append((*key, dice(answer.mask(threshold), truth)))
        table = pd.DataFrame(rows, columns=["patient", "view", "phase", "dice"])
        return table.sort_values("dice", kind="stable", ignore_index=True)


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
    import pandas as pd

    columns = "name path cohort kind model prompt strategy encoders seed scale profile weights"
    columns += " negatives val_dice"
    rows = []
    for file in sorted(paths.resolve(folder).rglob("run.yaml")):
        run = RunFolder(file.parent)
        if not run.complete or not list((run / "weights").glob("*.safetensors")):
            continue
        record = run.record
        values = {**record.get("parameters", {}), **record}
        if values.get("model") not in MODELS:  # the reference without words cannot be asked
            continue
        values |= {"name": run.path.name, "path": str(run.path), "val_dice": record.get("val_dice")}
        values.setdefault("negatives", 0)  # of runs before there were any
        rows.append({name: values.get(name) for name in columns.split()})
    table = pd.DataFrame(rows, columns=columns.split())
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

    The best is that with the highest validation Dice of those that learned from the cohort (strategy `real`),
    or, without such a one, of all.

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
    """A run's model and the weights that it started from; without a run the given weights alone.

    Returns
    -------
    dict
        Name to model: the run's name first, then ``zero-shot (<weights>)``.
    """
    if run is None:
        return {zero_shot_name(weights): models.load(model, weights)}
    return {
        str(run["name"]): models.load(run["model"], Path(run["path"]) / "weights"),
        zero_shot_name(run["weights"]): models.load(run["model"], run["weights"]),
    }


def zero_shot_name(weights: str | Path) -> str:
    """How a model that was not trained on echocardiograms is called."""
    return f"zero-shot ({Path(str(weights)).name})"


# -- pictures -----------------------------------------------------------------------------------------------


def paint(
    image: np.ndarray,
    colour: str,
    *,
    mask: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    fill: float = 0.25,
    enlarge: int = 2,
) -> np.ndarray:
    """A picture with an answer on it.

    Parameters
    ----------
    image
        uint8 (H, W).
    colour
        Hexadecimal colour of the structure.
    mask, truth
        Answer and reference, bool (H, W): the answer filled and outlined, the reference outlined in white.
    probability
        float (H, W), 0 to 1: laid over the picture in the structure's colour instead of the filled mask.
    fill
        How strongly the mask is filled, 0 to 1.
    enlarge
        Factor by which the picture is enlarged, so that outlines are fine.

    Returns
    -------
    ndarray
        uint8 (enlarge H, enlarge W, 3).
    """
    paint_with = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)
    canvas = np.repeat(image.astype(np.float32)[..., None], 3, axis=2)
    share = None
    if probability is not None:
        share = 0.75 * probability.astype(np.float32)
    elif mask is not None:
        share = fill * mask.astype(np.float32)
    if share is not None:
        canvas += share[..., None] * (paint_with - canvas)
    canvas = canvas.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    for area, ink in ((truth, np.float32(255)), (mask, paint_with)):
        if area is not None:
            canvas[masks.outline(area.repeat(enlarge, axis=0).repeat(enlarge, axis=1))] = ink
    return canvas.round().clip(0, 255).astype(np.uint8)


def level_names() -> dict[str, str]:
    """Prompt level to what it adds, for menus: ``P2 · view``."""
    names = {"P0": "P0 · nothing", "P1": "P1 · structure"}
    for before, level in pairwise(LEVELS[1:]):
        added = set(attributes_of(level)) - set(attributes_of(before))
        names[level] = f"{level} · {', '.join(sorted(added))}"
    return names

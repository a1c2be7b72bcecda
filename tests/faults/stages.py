"""The pieces of work that are disturbed, what they leave, and what of it may be seen half-way.

Each works in a folder of its own from inputs that all share; done again, it goes on or says that all is
there. Times, dates and paths are left out of what is compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "data" / "weights"
VOLATILE = frozenset(
    {
        *("commit", "date", "device", "peak_memory_gib", "seconds", "training_minutes", "minutes", "cohort"),
        *("run", "packages"),
    }
)
"""Keys of a record that differ between two equal runs."""


@dataclass(frozen=True)
class Stage:
    """One piece of work.

    Attributes
    ----------
    work
        `work(place, inputs)`: do it in the folder `place`.
    results
        `results(place)`: everything that must be equal after a disturbance, as names and hashes.
    parts
        `parts(place)`: of `results`, what can be read as a whole thing at this moment; of anything that says
        it is whole and is not, a name with an exclamation mark.
    state
        `state(place)`: how far the work is, in a few words.
    tolerance
        Of numbers in `results`; 0 for the same to the last bit.
    """

    name: str
    title: str
    work: Callable[[Path, Path], None]
    results: Callable[[Path], dict[str, Any]]
    parts: Callable[[Path], dict[str, Any]]
    state: Callable[[Path], str]
    tolerance: float = 0.0

    def equal(self, found: dict[str, Any], reference: dict[str, Any]) -> bool:
        """Whether two results are the same."""
        if found.keys() != reference.keys():
            return False
        return all(_same(found[key], reference[key], self.tolerance) for key in reference)

    def half_written(self, parts: dict[str, Any], reference: dict[str, Any]) -> list[str]:
        """What reads as whole in an unfinished place and is not what it will be."""
        wrong = [name for name in parts if name.endswith("!")]
        return wrong + [
            name
            for name, value in parts.items()
            if name not in wrong and not _same(value, reference.get(name), self.tolerance)
        ]


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if tolerance and isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            abs(a - b) <= tolerance for a, b in zip(one, other, strict=True)
        )
    return one == other


# -- inputs ---------------------------------------------------------------------------------------------


def make_inputs(inputs: Path) -> None:
    """A phantom cohort of four patients (two train), and a finished training on it, in `inputs`."""
    from echovlsm.phantom.cohort import write_phantom_cohort

    write_phantom_cohort(inputs / "phantom", 4, 3, 64, (0.5, 0.25, 0.25), progress=False, workers=1)
    train(inputs, inputs, epochs=1)


def digest(path: Path) -> str:
    """Hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def record(values: dict[str, Any]) -> str:
    """A record without what differs between two equal runs."""

    def plain(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {key: plain(value) for key, value in part.items() if key not in VOLATILE}

    return json.dumps(plain(values), sort_keys=True, default=str)


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text())


def table(path: Path) -> Any:
    """A table's values without the times."""
    import pandas as pd

    found = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    times = [name for name in found if name in ("seconds", "run")]
    return found.drop(columns=times).to_json(double_precision=15)


def tensors(path: Path) -> str:
    from safetensors.torch import load_file

    total = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        total.update(name.encode() + value.contiguous().view(-1).numpy().tobytes())
    return total.hexdigest()[:16]


def _whole(read: Callable[[Path], Any], path: Path) -> dict[str, Any]:
    """What a file under its final name says, by its name; marked where it cannot be read."""
    if not path.exists():
        return {}
    try:
        return {path.name: read(path)}
    except Exception as error:
        return {f"{path.name}: {type(error).__name__}!": None}


# -- cohorts --------------------------------------------------------------------------------------------


def _cohort(root: Path) -> dict[str, Any]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "cohort.yaml")
    found: dict[str, Any] = {path.relative_to(root).as_posix(): digest(path) for path in files}
    return found | {"cohort.yaml": record(_yaml(root / "cohort.yaml"))}


def _cohort_parts(root: Path) -> dict[str, Any]:
    """A whole cohort's files; nothing of one that no reader takes for a cohort."""
    from echovlsm.cohort.files import CohortError
    from echovlsm.cohort.read import read_cohort

    found = _cohort(root) if root.exists() else {}
    for hidden in root.parent.glob(f".{root.name}.*"):
        try:
            read_cohort(hidden)
        except CohortError:
            continue
        found[f"{hidden.name}!"] = None
    return found


def write_phantoms(place: Path, inputs: Path) -> None:
    """As notebook 01 does, with two workers."""
    from echovlsm.phantom.cohort import write_phantom_cohort

    if not (place / "phantom").exists():
        write_phantom_cohort(place / "phantom", 8, 5, 64, progress=False, workers=2)


def _phantom_state(place: Path) -> str:
    if (place / "phantom").exists():
        return "whole cohort"
    count = sum(1 for _ in place.glob(".phantom.partial/**/*.nii.gz"))
    return f"{count} of 64 files" if (place / ".phantom.partial").exists() else "nothing"


def sample(place: Path, inputs: Path) -> None:
    """As notebook 02 does."""
    from echovlsm.cohort.read import read_cohort
    from echovlsm.synthesis.sampling import ensure_cohort

    options = {"variants": 2, "steps": 3, "batch_size": 4, "seed": 2, "progress": False}
    frames = read_cohort(inputs / "phantom")
    ensure_cohort(place / "synthetic", frames, WEIGHTS / "sdm-tiny", **options)


def _sampling_state(place: Path) -> str:
    if (place / "synthetic").exists():
        return "whole cohort"
    work = place / ".synthetic.sampling"
    if (place / ".synthetic.partial").exists():
        return "all batches, cohort begun"
    return f"{len(list(work.glob('batch-*.npz')))} of 6 batches" if work.exists() else "nothing"


def _batches(place: Path) -> dict[str, Any]:
    """Whether every batch under its final name can be read."""
    import numpy as np

    found = {}
    for path in place.glob(".synthetic.sampling/batch-???????.npz"):
        try:
            with np.load(path, allow_pickle=False) as batch:
                assert all(len(batch[name]) == 4 for name in ("images", "maps", "redraws"))
        except Exception as error:
            found[f"{path.name}: {error}!"] = None
    return found


# -- runs -----------------------------------------------------------------------------------------------


def run_notebook(name: str, **values: Any) -> None:
    """The cells of a study notebook in this process, but for those that only draw."""
    import nbformat

    from echovlsm.study.parameters import read_profile

    profile = read_profile(ROOT / "notebooks" / "profiles" / "smoke.yaml")
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(sources[0], namespace)
    namespace.update({key: value for key, value in {**profile, **values}.items() if key in namespace})
    for source in sources[1:]:
        if "page.stamp(" not in source:
            exec(compile(source, name, "exec"), namespace)


def train(place: Path, inputs: Path, *, epochs: int = 5, encoders: str = "unfrozen") -> None:
    """As notebook 04 does."""
    os.environ["ECHOVLSM_CACHE"] = str(place / "cache")
    run_notebook(
        "04_training",
        cohort=str(inputs / "phantom"),
        weights=str(WEIGHTS / "clipseg-tiny"),
        run=str(place / "run"),
        encoders=encoders,
        prompt="P3",
        epochs=epochs,
        batch_size=4,
        threads=1,
        seed=7,
    )


def train_frozen(place: Path, inputs: Path) -> None:
    """A training from kept features; the run lies beside `place`, so that only the cache is disturbed."""
    beside = place.with_name(f"{place.name}-beside")
    beside.mkdir(exist_ok=True)
    (beside / "cache").unlink(missing_ok=True)
    place.mkdir(exist_ok=True)
    (beside / "cache").symlink_to(place)
    train(beside, inputs, epochs=2, encoders="frozen")


def _run(place: Path) -> dict[str, Any]:
    run = place / "run"
    assert not (run / "state").exists()
    return {
        "run.yaml": record(_yaml(run / "run.yaml")),
        "history.csv": table(run / "history.csv"),
        "model.safetensors": tensors(run / "weights" / "model.safetensors"),
        "config.json": digest(run / "weights" / "config.json"),
        "tokenizer.json": digest(run / "weights" / "tokenizer.json"),
        "preprocessor_config.json": digest(run / "weights" / "preprocessor_config.json"),
    }


def _run_parts(place: Path) -> dict[str, Any]:
    run, found = place / "run", {}
    values = _yaml(run / "run.yaml") if (run / "run.yaml").is_file() else {}
    if values.get("status") == "complete":
        (found.update(_whole(lambda path: record(_yaml(path)), run / "run.yaml")))
    found |= _whole(table, run / "history.csv")
    if (run / "weights").is_dir():
        found |= _whole(tensors, run / "weights" / "model.safetensors")
        for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
            found[name] = digest(run / "weights" / name)
    unread = _whole(tensors, run / "state" / "best.safetensors")
    for folder in (run / "state").glob("checkpoint-???????"):
        unread |= _whole(lambda path: json.loads(path.read_text()), folder / "progress.json")
        unread |= _whole(tensors, folder / "model.safetensors")
    return found | {name: None for name in unread if name.endswith("!")}


def _run_state(place: Path) -> str:
    run = place / "run"
    if not (run / "run.yaml").is_file():
        return "nothing"
    if _yaml(run / "run.yaml")["status"] == "complete":
        return "complete"
    if (run / "weights").is_dir():
        return "weights written"
    done = sorted((run / "state").glob("checkpoint-???????"))
    return f"epoch {int(done[-1].name.rpartition('-')[2])} of 5" if done else "started"


def _frozen(place: Path) -> dict[str, Any]:
    import pandas as pd

    history = pd.read_csv(place.with_name(f"{place.name}-beside") / "run" / "history.csv")
    return {"history.csv": history[["train_loss", "val_loss", "val_dice"]].to_numpy().ravel().tolist()}


def _frozen_parts(place: Path) -> dict[str, Any]:
    import numpy as np

    found = {}
    for path in place.glob("[!.]*/*.npy"):
        try:
            np.load(path)
        except Exception as error:
            found[f"{path.name}: {error}!"] = None
    return found


def learn_denoiser(place: Path, inputs: Path) -> None:
    """As notebook 02 does with `train_sdm`."""
    from echovlsm.cohort.read import read_cohort
    from echovlsm.synthesis.trial import denoiser_for

    settings = {"steps": 6, "batch_size": 2, "learning_rate": 1e-3, "check_every": 2, "warm_up": 2}
    denoiser_for(WEIGHTS / "sdm-tiny", place, read_cohort(inputs / "phantom"), progress=False, **settings)


def _denoiser(place: Path) -> dict[str, Any]:
    found = {name: digest(place / "sdm" / name) for name in ("config.json", "trained_on.json")}
    found["history.csv"] = table(place / "sdm" / "history.csv")
    return found | {"model.safetensors": tensors(place / "sdm" / "model.safetensors")}


def _denoiser_parts(place: Path) -> dict[str, Any]:
    found = _denoiser(place) if (place / "sdm").is_dir() else {}
    for folder in (place / "sdm-state").glob("checkpoint-???????"):
        unread = _whole(lambda path: json.loads(path.read_text()), folder / "progress.json")
        unread |= _whole(tensors, folder / "model.safetensors")
        found |= {name: None for name in unread if name.endswith("!")}
    return found


def _denoiser_state(place: Path) -> str:
    if (place / "sdm").is_dir():
        return "weights written"
    done = sorted((place / "sdm-state").glob("checkpoint-???????"))
    return f"step {int(done[-1].name.rpartition('-')[2])} of 6" if done else "nothing"


# -- scores ---------------------------------------------------------------------------------------------


def score(place: Path, inputs: Path) -> None:
    """As `echovlsm evaluate` does, with a record."""
    from echovlsm.base import files, provenance
    from echovlsm.evaluation import evaluate_run

    os.environ["ECHOVLSM_CACHE"] = ""
    provenance.set_up(1, 0)
    options = {"size": 128, "record": place / "record"}
    try:
        evaluate_run(inputs / "phantom", inputs / "run", "all", out=place / "scores.parquet", **options)
    except (files.FullDiskError, files.InUseError) as error:
        raise SystemExit(f"error: {error}") from None


def _recorded(place: Path) -> Path:
    return place / "record" / "clipseg-P3-real-unfrozen-seed7"


def _scores(place: Path) -> dict[str, Any]:
    found = {"scores.parquet": table(place / "scores.parquet")}
    found["scores.yaml"] = record(_yaml(place / "scores.yaml"))
    for name in ("scores.parquet", "clinical.csv", "history.csv"):
        found[f"record/{name}"] = table(_recorded(place) / name)
    return found | {"record/run.yaml": record(_yaml(_recorded(place) / "run.yaml"))}


def _scores_parts(place: Path) -> dict[str, Any]:
    found = _whole(table, place / "scores.parquet")
    found |= _whole(lambda path: record(_yaml(path)), place / "scores.yaml")
    if (_recorded(place) / "run.yaml").is_file():  # the mark of a whole record
        found |= {name: value for name, value in _scores(place).items() if name.startswith("record/")}
    return found


def _scores_state(place: Path) -> str:
    for path, words in (
        (_recorded(place) / "run.yaml", "on record"),
        (place / "scores.yaml", "record begun"),
        (place / "scores.parquet", "scores written"),
    ):
        if path.is_file():
            return words
    return "nothing"


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "phantom",
            "writing phantoms",
            write_phantoms,
            lambda place: _cohort(place / "phantom"),
            lambda place: _cohort_parts(place / "phantom"),
            _phantom_state,
        ),
        Stage(
            "sampling",
            "drawing with diffusion",
            sample,
            lambda place: _cohort(place / "synthetic"),
            lambda place: _cohort_parts(place / "synthetic") | _batches(place),
            _sampling_state,
        ),
        Stage("training", "training", train, _run, _run_parts, _run_state),
        Stage("scoring", "scoring", score, _scores, _scores_parts, _scores_state),
        Stage(
            "denoiser",
            "training the denoiser",
            learn_denoiser,
            _denoiser,
            _denoiser_parts,
            _denoiser_state,
        ),
        Stage(
            "features",
            "keeping features",
            train_frozen,
            _frozen,
            _frozen_parts,
            lambda place: f"{len(list(place.glob('[!.]*')))} entries",
            tolerance=1e-3,
        ),
    )
}
"""By name."""

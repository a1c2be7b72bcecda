"""Notebook parameters: checked against the notebook's own annotations before anything runs.

Papermill only warns of a name that it does not know and says nothing of a wrong type. Here both are errors:
before the kernel starts (`echovlsm execute`), or in the notebook's second code cell (`check_parameters`).
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echovlsm import SPLITS
from echovlsm.base import files, paths
from echovlsm.models import MODELS, REFERENCES
from echovlsm.prompts import templates

SCALES: tuple[str, ...] = ("smoke", "demo", "full")
CHOICES: dict[str, tuple[str, ...]] = {
    "scale": SCALES,
    "model": (*MODELS, *REFERENCES),
    "prompt": templates.LEVELS,
    "encoders": ("frozen", "unfrozen", "lora"),
    "strategy": ("zeroshot", "synthetic", "real", "synth-PT:real-FT", "joint"),
    "cohort_split": ("official", "paper"),
    "evaluate_on": SPLITS,
    "variant": ("random", *map(str, templates.VARIANTS)),
    "mixed_precision": ("no", "fp16", "bf16"),
    "missing": ("error", "omit"),
    "keep": ("last", "best"),
    "sampler": ("ddpm", "ddim", "dpm-solver++", "sde-dpm-solver++", "heun"),
    "sdm_precision": ("no", "fp16", "bf16"),
}
"""Allowed values of parameters that have a closed list."""

AT_LEAST: dict[str, float] = {
    **dict.fromkeys(("patients", "variants", "epochs", "batch_size", "look_every"), 1),
    **dict.fromkeys(("sampling_steps", "ancestral_steps", "segmenter_updates", "trial_pictures"), 1),
    **dict.fromkeys(("sdm_steps", "sdm_batch_size", "resamples", "pictures"), 1),
    **dict.fromkeys(("train_patients", "val_patients", "synthetic_patients", "test_patients"), 0),
    **dict.fromkeys(("source_patients", "word_patients", "image_size", "score_size"), 0),
    **dict.fromkeys(("threads", "seed", "cohort_seed", "holdout_seed", "negatives"), 0),
    **dict.fromkeys(("patience", "plateau_patience", "steps"), 0),
    **dict.fromkeys(("weight_decay", "dice_weight", "ce_weight", "holdout", "guidance"), 0),
    "picture_size": 32,
}
"""Smallest value of parameters that count or weigh something."""

ABOVE_ZERO: tuple[str, ...] = ("learning_rate", "sdm_learning_rate", "plateau_factor")
"""Parameters that must be positive."""

NUMBERS_AS_TEXT: tuple[str, ...] = ("seeds",)
"""Parameters whose text is a list of numbers, one of which a command line may take for a number."""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "bool | None": (bool, type(None)),
}
_TRUTHS: dict[str, bool] = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}


class ParameterError(ValueError):
    """A notebook parameter that is unknown, has the wrong type or a value outside its list."""


def _declarations(notebook: str | Path) -> list[tuple[str, ast.AnnAssign]]:
    """The annotated assignments of a notebook's cell tagged `parameters`."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        raise ParameterError(f"{notebook}: no cell is tagged `parameters`")
    nodes = ast.parse(tagged[0]).body
    return [
        (n.target.id, n) for n in nodes if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    ]


def notebook_parameters(notebook: str | Path) -> dict[str, str]:
    """Names and type hints declared in a notebook's cell tagged `parameters`."""
    return {name: ast.unparse(node.annotation) for name, node in _declarations(notebook)}


def notebook_defaults(notebook: str | Path) -> dict[str, Any]:
    """Names and default values of a notebook's cell tagged `parameters`."""
    return {name: ast.literal_eval(node.value) for name, node in _declarations(notebook) if node.value}


def coerce(values: Mapping[str, Any], declared: Mapping[str, str]) -> dict[str, Any]:
    """Read values as the declared types where a command line left no doubt what is meant.

    Papermill and Snakemake read `-p variant 0` as a number, `redo=true` and `1e-5` as text, and YAML reads
    the word no as false. What does not fit stays as it is, for `check_values` to name; so does a number where
    any text could stand, such as a folder's name: what was typed was perhaps `007`, or `2023_01`.
    """
    read = dict(values)
    for name, value in values.items():
        kind = declared.get(name)
        if kind == "str" and type(value) is int:
            if name in NUMBERS_AS_TEXT or str(value) in CHOICES.get(name, ()):
                read[name] = str(value)
        elif value is False and "no" in CHOICES.get(name, ()):
            read[name] = "no"
        elif kind in ("bool", "bool | None") and isinstance(value, str):
            read[name] = _TRUTHS.get(value.lower(), value)
        elif kind in ("int", "float") and isinstance(value, str):
            with contextlib.suppress(ValueError):
                read[name] = int(value) if kind == "int" else float(value)
    return read


def as_typed(
    values: Mapping[str, Any], arguments: Sequence[str], declared: Mapping[str, str]
) -> dict[str, Any]:
    """Snakemake's `--config` with texts as they were typed.

    Snakemake takes for a number whatever Python can, `2023_01` too, and reads the rest as YAML.

    Parameters
    ----------
    values
        Names and values as Snakemake read them.
    arguments
        The command line's words, before anything read them.
    declared
        Names and type hints of all parameters.

    Raises
    ------
    ParameterError
        Names every text that arrived as another one.
    """
    read, problems = dict(values), []
    for name, value in values.items():
        words = (word.removeprefix("--config=") for word in arguments)
        typed = [word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")]
        if declared.get(name) != "str" or not typed:
            continue
        text = "" if value is None else str(value)
        if text in typed or f"'{text}'" in typed:  # in quotes where Snakemake starts a job by itself
            read[name] = text
        else:
            problems.append(
                f"parameter `{name}` is {typed[-1]!r}, which Snakemake reads as {value!r}; begin a folder's "
                "name with ./, or put a text in quotes in a file, and give that with --configfile"
            )
    if problems:
        raise ParameterError(f"--config: {'; '.join(problems)}")
    return read


def check_values(values: Mapping[str, Any], declared: Mapping[str, str], where: str) -> None:
    """Check names, types, closed lists and smallest values of parameters.

    Raises
    ------
    ParameterError
        Names every problem at once, with the nearest known name for an unknown one.
    """
    problems = []
    for name, value in values.items():
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1, cutoff=0.5)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(sorted(declared))}"
            problems.append(f"unknown parameter `{name}`{hint}")
            continue
        kind = declared[name]
        wrong_bool = isinstance(value, bool) and kind not in ("bool", "bool | None")
        if not isinstance(value, _TYPES.get(kind, object)) or wrong_bool:
            number = kind == "str" and isinstance(value, int | float) and name not in CHOICES
            hint = "; put it in quotes (papermill: -r, not -p), or begin a folder with ./" if number else ""
            problems.append(f"parameter `{name}` must be {kind}, not {type(value).__name__} {value!r}{hint}")
        elif name in CHOICES and value not in CHOICES[name]:
            near = difflib.get_close_matches(str(value), CHOICES[name], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            problems.append(f"parameter `{name}` is {value!r}; {hint}allowed: {', '.join(CHOICES[name])}")
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"parameter `{name}` is {value}; give a finite number")
        elif name in AT_LEAST and value < AT_LEAST[name]:
            problems.append(f"parameter `{name}` is {value}; it must be at least {AT_LEAST[name]}")
        elif name in ABOVE_ZERO and value <= 0:
            problems.append(f"parameter `{name}` is {value}; it must be above 0")
    if problems:
        raise ParameterError(f"{where}: " + "; ".join(problems))


def check_parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """Check a notebook's parameters from inside it, in the cell after the one tagged `parameters`.

    The notebook's own annotations (``prompt: str = "P1"``) are the schema. What Papermill injected is read
    from its cell (it begins with ``# Parameters``), so that an undeclared name is found. A name that belongs
    to another notebook passes only with the value of the profile, which serves all notebooks.

    Parameters
    ----------
    namespace
        ``globals()`` of the notebook; values that a command line gave as another type are put right in it.

    Returns
    -------
    dict
        The declared parameters and their values.
    """
    declared = {
        name: getattr(hint, "__name__", str(hint)) for name, hint in namespace["__annotations__"].items()
    }
    injected: dict[str, Any] = {}
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):
            for node in ast.parse(source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    injected[node.targets[0].id] = namespace[node.targets[0].id]
    values = coerce({name: namespace[name] for name in declared}, declared)
    namespace.update(values)
    profile = profile_of(values.get("profile"))
    unknown = {
        name: value
        for name, value in injected.items()
        if name not in declared and profile.get(name, ...) != value
    }
    check_values({**values, **unknown}, declared, "parameters")
    return values


def profile_of(name: str | None, root: Path | None = None) -> dict[str, Any]:
    """The values of a profile of `notebooks/profiles`; none where there is no such file."""
    path = (root or paths.project_root()) / "notebooks" / "profiles" / f"{name}.yaml"
    return read_profile(path) if path.is_file() else {}


def read_profile(path: str | Path) -> dict[str, Any]:
    """A Papermill parameter file (`notebooks/profiles/*.yaml`): a flat mapping of names to values."""
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ParameterError(f"profile: {path} does not exist; there are: {known}")
    values = files.read_yaml(path, ParameterError, "a profile is a flat mapping, one `name: value` a line")
    if any(isinstance(value, dict | list) for value in values.values()):
        raise ParameterError(f"profile: {path} must be a flat mapping `name: value`")
    return values


def parameters_for(
    notebook: str | Path, profile: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a profile that a notebook declares, with `changes` on top (which it must declare)."""
    declared = notebook_parameters(notebook)
    own = {name: value for name, value in profile.items() if name in declared}
    return coerce({**own, **changes}, declared)


def may_draw_phantom(make_phantom: bool | None, cohort: str, profile: str) -> bool:
    """Whether a phantom may be drawn where there is no cohort.

    `make_phantom` decides; where it is None, a phantom belongs in the profile's own cohort alone: any other
    folder that is not there is a typing error.
    """
    if make_phantom is not None:
        return make_phantom
    own = profile_of(profile).get("cohort")
    return own is not None and paths.resolve(cohort).resolve() == paths.resolve(own).resolve()

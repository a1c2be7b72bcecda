"""What the paper published: its Dice tables, its authors' scores of 600 masks, and which patients these are.

Adhikari et al. 2023 (ASMUS; arXiv:2309.12829). Their repository holds 69 files of scores: 3 strategies x 3
runs x P0-P7 (synthetic: P0-P6), each of the 600 masks of CAMUS's 50 testing patients. They are CC BY 4.0 and
not part of this project: `load_scores` reads them from a file or folder, or downloads them at a pinned
commit. Either way the content of each file is checked against `data/published/registry.csv`.

Where the scores are absent pages render from the small tables of `data/published/results`, which `echovlsm
published compute --scores PATH` writes (`load_results`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from echovlsm import PHASES, STRUCTURES, VIEWS
from echovlsm.base import paths
from echovlsm.cohort import legacy_testing_map, load_labels, read_cohort

REPOSITORY = "naamiinepal/synthetic-boost"
COMMIT = "8adcde255207dc3b0c06a77b4ad9ca9dd0a7f67e"
"""A commit of the authors' repository that holds all 69 files of scores."""
BASE_URL = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}/"

EXTRA_RUN = "CLIPSeg (untabulated run)"
"""A run that the authors released and did not tabulate. What sets it apart is not recorded; the other run's
folder ends in `_bs_128`, so that it may be the batch size."""
_OTHER_NAMES = {"CLIPSeg (batch size 16 run)": EXTRA_RUN}
PAPER_MODELS: tuple[str, ...] = ("CLIPSeg", "CRIS")
"""Models of the paper's tables."""

PROMPT_FILES: dict[str, str] = {
    "real": "prompts_camus_val.json",
    "synthetic": "prompts_sdm_val_first600.json",
}
"""Cohort to the file of the authors' prompts, of 600 images each."""

MASK: list[str] = ["legacy_test_patient", "view", "phase", "label"]
"""Columns that name one of the 600 masks."""
COLUMNS: list[str] = [
    *("strategy", "model", "prompt", *MASK),
    *("dice", "iou", "hausdorff", "dice_of_all_foreground"),
]
_FILE = "scores_per_image.csv.gz"
_MASK_NAME = (
    r"mask_(?P<label>\d)/(?P<legacy_test_patient>patient\d{4})_(?P<view>[24]CH)_(?P<phase>E[DS])_gt\.png$"
)


class PublishedError(ValueError):
    """Published scores or tables that are absent, incomplete, or not the authors'."""


def data_folder() -> Path:
    """The folder `data/published` of the project, or of the copy that the package lies in."""
    folder = paths.resolve("data/published")
    return folder if folder.is_dir() else Path(__file__).resolve().parents[2] / "data" / "published"


def load_tables() -> pd.DataFrame:
    """The paper's two Dice tables, typed in from its arXiv source.

    Returns
    -------
    DataFrame
        One row per cell (112, of which 4 are N/A in the paper): `table` (`Table 2`: encoders unfrozen, `Table
        3`: frozen), `encoders`, `strategy`, `model`, `prompt`, `dice_mean`, `dice_sd` (percent, over the 600
        masks; NaN where the paper has N/A).
    """
    return pd.read_csv(data_folder() / "tables.csv")


def load_claims() -> pd.DataFrame:
    """The paper's claims, one row per claim.

    Returns
    -------
    DataFrame
        `id`; `fact` (number in the list of claims that the study started from; NA: found later); `claim` (a
        few words of the paper); `place` (section, table or figure); `given` (what stands there), `value` and
        `p` (its numbers; NaN: none); `section` (of notebook 07 that computes it); `ours` (strategies of our
        runs that bear on it: none, one, or two to subtract).
    """
    numbers = ["fact", "value", "p"]
    absent = dict.fromkeys(numbers, "")
    table = pd.read_csv(data_folder() / "claims.csv", keep_default_na=False, na_values=absent)
    return table.astype({"fact": "Int64", "value": float, "p": float})


def load_settings() -> pd.DataFrame:
    """Settings as the paper states them and as the released code has them: `setting, paper, code, where`."""
    return pd.read_csv(data_folder() / "settings.csv", keep_default_na=False)


# -- the authors' scores ----------------------------------------------------------------------------------


def registered() -> pd.DataFrame:
    """The 69 files: `strategy, model, prompt, path` (in the repository), `rows`, `sha256` (of the content).

    The hash is of the lines `mask,iou,dice,hausdorff`, four decimals, sorted: in the authors' files rows have
    no order of their own, and the first column holds paths of one machine.
    """
    return pd.read_csv(data_folder() / "registry.csv")


def load_scores(path_or_cache: str | os.PathLike[str] | None = None, verify: bool = True) -> pd.DataFrame:
    """Read the authors' scores, one row per strategy, run, prompt and mask.

    Parameters
    ----------
    path_or_cache
        The table of all scores (`scores_per_image.csv.gz`) or the folder it lies in; or a folder with the
        authors' files (their repository, or its folder `metrics`). None: download them (`fetch_scores`).
    verify
        Compare each of the 69 contents with `data/published/registry.csv`.

    Returns
    -------
    DataFrame
        41,400 rows: `strategy`, `model`, `prompt`, `legacy_test_patient` (`patient0001`-`patient0050`, old
        numbering), `view`, `phase`, `label`, `structure`; `dice` and `iou` (percent), `hausdorff` (100 x
        pixels of the 512 x 512 grid), `dice_of_all_foreground` (percent: Dice of a mask that is foreground
        everywhere, hence the true area; within 0.0002).

    Raises
    ------
    PublishedError
        Nothing there, an incomplete or foreign file, or other content than the authors'.
    """
    path = fetch_scores() if path_or_cache is None else Path(path_or_cache).expanduser()
    if (path / _FILE).is_file():
        path = path / _FILE
    if path.is_dir():
        scores = _read_repository(path)
    elif path.is_file():
        scores = _read_table(path)
    else:
        raise PublishedError(
            f"scores: {path} does not exist; give {_FILE}, a folder with the authors' files, or nothing "
            f"for a download from {REPOSITORY}"
        )
    if verify:
        _verify(scores, path)
    scores["structure"] = scores["label"].map(STRUCTURES)
    return scores.sort_values(["strategy", "model", "prompt", *MASK], ignore_index=True)


def fetch_scores(cache: str | os.PathLike[str] | None = None, base_url: str = BASE_URL) -> Path:
    """Download the authors' 69 files (7.6 MB) at the pinned commit; each is checked as it arrives.

    Parameters
    ----------
    cache
        Folder; by default pooch's cache of the user. What is there and right is not fetched again.
    base_url
        Where the repository's files lie.

    Returns
    -------
    Path
        The folder, for `load_scores`.

    Raises
    ------
    PublishedError
        No connection, or a file with other content (it is deleted).
    """
    import pooch

    registry = registered().set_index("path")
    cache = Path(cache) if cache else Path(pooch.os_cache("echovlsm")) / "synthetic-boost" / COMMIT[:10]
    cache = cache.expanduser().resolve()

    def right(path: str) -> bool:
        try:
            return content_hash(_read_metrics(cache / path)) == registry.loc[path, "sha256"]
        except PublishedError:
            return False

    # not pooch's hash of the bytes: these hold paths and an order of rows that mean nothing
    store = pooch.create(path=cache, base_url=base_url, registry=dict.fromkeys(registry.index))
    pooch.get_logger().setLevel("WARNING")
    for path in registry.index:
        if (cache / path).is_file() and not right(path):
            (cache / path).unlink()  # a download that broke off: once more
        try:
            store.fetch(path)
        except OSError as error:
            raise PublishedError(
                f"scores: cannot download {base_url}{path} ({type(error).__name__}); get "
                f"https://github.com/{REPOSITORY} by hand and give the parameter `scores` its folder"
            ) from error
        if not right(path):
            (cache / path).unlink()
            raise PublishedError(f"scores: {base_url}{path} is not the authors' file; nothing of it was kept")
    return cache


def content_hash(part: pd.DataFrame) -> str:
    """SHA-256 of one file's content (see `registered`); columns `MASK`, `iou`, `dice`, `hausdorff`."""
    lines = sorted(
        f"mask_{r.label}/{r.legacy_test_patient}_{r.view}_{r.phase},{r.iou:.4f},{r.dice:.4f},{r.hausdorff:.4f}"
        for r in part.itertuples()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _verify(scores: pd.DataFrame, path: Path) -> None:
    expected = registered().set_index(["strategy", "model", "prompt"])["sha256"]
    found = {key: content_hash(part) for key, part in scores.groupby(list(expected.index.names))}
    wrong = [key for key in expected.index if found.get(key) != expected[key]]
    wrong += [key for key in found if key not in expected.index]
    if wrong:
        raise PublishedError(
            f"scores: {path} differs from the authors' scores in {len(wrong)} of {len(expected)} runs "
            f"(first: {', '.join(wrong[0])}); download them again, or give verify=False to use it as it is"
        )


def _read_table(path: Path) -> pd.DataFrame:
    try:
        scores = pd.read_csv(path)
    except Exception as error:  # pandas also looks into archives, which fail in many ways
        told = f"scores: {path} is not a table that can be read ({error}); give {_FILE}"
        raise PublishedError(told) from error
    absent = [name for name in COLUMNS if name not in scores]
    if absent:
        told = f"scores: {path} has no column {', '.join(absent)}; it is not {_FILE}, give that file"
        raise PublishedError(told)
    return scores[COLUMNS].assign(model=scores["model"].replace(_OTHER_NAMES))


def _read_repository(folder: Path) -> pd.DataFrame:
    root = folder if (folder / "metrics").is_dir() else folder.parent
    registry = registered()
    absent = [path for path in registry["path"] if not (root / path).is_file()]
    if absent:
        raise PublishedError(
            f"scores: {folder} lacks {len(absent)} of the authors' {len(registry)} files (first: "
            f"{absent[0]}); give {_FILE}, a whole copy of https://github.com/{REPOSITORY}, or nothing for a "
            "download"
        )
    parts = [
        _read_metrics(root / row.path).assign(strategy=row.strategy, model=row.model, prompt=row.prompt)
        for row in registry.itertuples()
    ]
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _read_metrics(path: Path) -> pd.DataFrame:
    """Read one of the authors' files; of `filename` only the last folder and the name count."""
    try:
        table = pd.read_csv(path)
        names = table["filename"].str.extract(_MASK_NAME)
        result = names.assign(
            label=names["label"].astype(int),
            dice=table["dice"],
            iou=table["iou"],
            hausdorff=table["hausdorff_distance"],
            # their column is the Dice minus that of a mask of ones
            dice_of_all_foreground=(table["dice"] - table["ones_dice_diff"]).round(4),
        )
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise PublishedError(f"scores: {path} is not one of the authors' files ({error})") from error
    if len(result) != len(STRUCTURES) * len(VIEWS) * len(PHASES) * 50:
        raise PublishedError(f"scores: {path} has {len(result)} rows, not 600; get it again")
    return result


def read_scores(scores: str, camus: str = "") -> tuple[pd.DataFrame, Path | None, pd.DataFrame | None]:
    """The authors' scores as notebook 07's parameters name them.

    Parameters
    ----------
    scores
        Their file or folder, or ``download``.
    camus
        The public release, from which the image qualities are; empty: without.

    Returns
    -------
    table : DataFrame
        Of `load_scores`, with `quality` where there is a release.
    prompts : Path or None
        The folder of the authors' prompt files, where they lie beside the scores.
    frames : DataFrame or None
        The frames table of the release.
    """
    place = None if scores == "download" else paths.resolve(scores)
    folder = place.parent if place and place.is_file() else place
    here = folder and all((folder / name).is_file() for name in PROMPT_FILES.values())
    table, frames = load_scores(place), None
    if camus:
        root = paths.resolve(camus)
        mapping, frames = legacy_testing_map(root), read_cohort(root)
        table = add_quality(table, frames, mapping)
    return table, folder if here else None, frames


# -- whose images these are -------------------------------------------------------------------------------


def add_quality(
    scores: pd.DataFrame, frames: pd.DataFrame, mapping: Mapping[str, str] | pd.Series
) -> pd.DataFrame:
    """Scores with the `quality` of the view that the public release's frames have (NA where unknown)."""
    known = frames.drop_duplicates(["patient", "view"]).set_index(["patient", "view"])["quality"]
    keys = zip(scores["legacy_test_patient"].map(dict(mapping)), scores["view"], strict=True)
    return scores.assign(quality=pd.array([known.get(key, pd.NA) for key in keys], dtype="string"))


def true_areas(scores: pd.DataFrame) -> pd.Series:
    """Share of the image that each true mask covers (0-1), index `MASK`, from `dice_of_all_foreground`.

    A mask of share s has the Dice d = 2 s / (s + 1) with a mask that is foreground everywhere.
    """
    dice = scores.groupby(MASK)["dice_of_all_foreground"].mean() / 100
    return (dice / (2 - dice)).rename("share")


def check_identity(
    frames: pd.DataFrame, scores: pd.DataFrame, mapping: Mapping[str, str] | pd.Series
) -> pd.DataFrame:
    """Compare the areas behind the published scores with those of the testing patients' masks.

    Parameters
    ----------
    frames
        Of `read_cohort`; its rows with split `test` and a mask are used.
    scores, mapping
        Of `load_scores`, and old testing number to patient, of `legacy_testing_map`.

    Returns
    -------
    DataFrame
        One row per old testing patient: `legacy_test_patient`, `patient` (of the mapping), `masks`,
        `difference` (mean absolute difference of the areas' shares of the image), `nearest` (the patient
        whose areas agree best), `next_best` (smallest difference to another patient), `agrees`.

    Raises
    ------
    PublishedError
        No testing images with masks among the frames, or none of the mapped patients.
    """
    testing = frames[(frames["split"] == "test") & frames["labels"].notna()]
    if testing.empty:
        raise PublishedError(
            "frames: no testing image with a mask; the identity can only be checked with the whole public "
            "release (its 50 testing patients)"
        )
    records = {}
    for row in testing.itertuples():
        labels = load_labels(row)
        for value in STRUCTURES:
            records[row.patient, (row.view, row.phase, value)] = float((labels == value).mean())
    ours = pd.Series(records).unstack()
    theirs = true_areas(scores).unstack(MASK[1:])
    ours = ours.reindex(columns=theirs.columns.to_flat_index())
    known = [(old, new) for old, new in dict(mapping).items() if new in ours.index and old in theirs.index]
    if not known:
        raise PublishedError("mapping: none of its patients is among the testing images of the frames")
    rows = []
    for old, new in known:
        gap = (ours - theirs.loc[old].to_numpy()).abs()
        mean = gap.mean(axis=1)
        rows.append(
            {
                "legacy_test_patient": old,
                "patient": new,
                "masks": int(gap.loc[new].notna().sum()),
                "difference": float(mean[new]),
                "nearest": str(mean.idxmin()),
                "next_best": float(mean.drop(new).min()),
                "agrees": bool(mean.idxmin() == new),
            }
        )
    return pd.DataFrame(rows)


# -- recorded results ----------------------------------------------------------------------------------------


def load_results(
    folder: str | os.PathLike[str] | None = None,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Tables of an earlier computation, by name, and where they come from (`source.yaml`)."""
    folder = Path(folder) if folder else data_folder() / "results"
    if not (folder / "source.yaml").is_file():
        remedy = "run echovlsm published compute --scores PATH"
        raise PublishedError(f"results: nothing recorded in {folder}; {remedy}")
    tables = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
    return tables, yaml.safe_load((folder / "source.yaml").read_text())

"""Every number of chapter 07: the recomputed tables, the ledger of claims, and our runs beside the authors'.

The claims stand in `data/published/claims.csv`. Which checks each gets is chosen by hand (`evidence`);
whether they pass is computed, and the verdict follows by the rule that notebook 07 states.

The authors scored CAMUS's 50 testing patients under the old release's numbers. With
`cohort.legacy_testing_map` a run of ours, scored on the public release's testing subgroup at 512 x 512,
can be compared with theirs on the same 600 masks.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from echovlsm import STRUCTURES
from echovlsm.base import files, provenance
from echovlsm.evaluation import scoring, statistics
from echovlsm.published import scores as published
from echovlsm.published.evidence import EVIDENCE, Check, Tables
from echovlsm.published.scores import COMMIT, PAPER_MODELS, REPOSITORY, PublishedError, load_claims
from echovlsm.published.statistics import compute as compute_statistics
from echovlsm.study import answers

VERDICTS: tuple[str, ...] = (
    "holds",
    "holds weakly",
    "mixed",
    "does not hold",
    "premise false",
    "cannot be checked",
    "not a finding",
)

_BY_FAILURE = {"premise": "premise false", "essential": "does not hold", "against": "mixed"}
_CELL = ["model", "prompt", "strategy"]
_MASK = ["patient", "view", "phase", "structure"]


# -- the tables -------------------------------------------------------------------------------------------


def results_of(
    scores: pd.DataFrame, prompts: str | os.PathLike[str] | None = None
) -> dict[str, pd.DataFrame]:
    """Every table that pages show, by name: those of `statistics.compute`, and the `ledger`.

    Parameters
    ----------
    scores
        Of `load_scores`.
    prompts
        Folder of the authors' prompts; by default what is recorded of them.
    """
    results = compute_statistics(scores, prompts)
    if prompts is None:
        results["words_of_p6"] = published.load_results()[0]["words_of_p6"]
    return results | {"ledger": ledger(results)}


def compute(
    path: str | Path | None = None, prompts: str | Path | None = None, out: str | Path | None = None
) -> tuple[Path, int]:
    """Record the tables from which pages render where the authors' scores are absent.

    `path` is as for `load_scores`, `prompts` as for `results_of`; `out` is by default the folder of the
    recorded tables.

    Returns
    -------
    tuple
        That folder, and how many tables it got.
    """
    scores = published.load_scores(path)
    results = results_of(scores, prompts)
    folder = Path(out or published.data_folder() / "results")
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        f"{name}.csv": table.to_csv(index=False, float_format="%.8g", lineterminator="\n")
        for name, table in results.items()
    }
    texts["source.yaml"] = yaml.safe_dump(source_of(scores), sort_keys=False)
    for name, text in texts.items():
        with files.appearing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return folder, len(results)


def drift(fresh: Mapping[str, pd.DataFrame], recorded: Mapping[str, pd.DataFrame]) -> list[str]:
    """Names of tables that differ or that only one side has.

    Tables are compared as `compute` writes them, without comparisons by image quality, which are never on
    record. Numbers may differ by a millionth of themselves, however small they are.
    """
    fresh = dict(fresh)
    if (every := fresh.get("comparisons")) is not None:
        fresh["comparisons"] = every[every["factor"] != "quality"]
    differing = sorted(set(fresh) ^ set(recorded))
    for name in sorted(set(fresh) & set(recorded)):
        written = pd.read_csv(io.StringIO(fresh[name].to_csv(index=False, float_format="%.8g")))
        try:
            pd.testing.assert_frame_equal(written, recorded[name], rtol=1e-6, atol=0, check_dtype=False)
        except AssertionError:
            differing.append(name)
    return differing


def source_of(scores: pd.DataFrame) -> dict[str, Any]:
    """What a computation rests on: repository, commit, hash of the scores' content, date, packages."""
    groups = scores.groupby(["strategy", "model", "prompt"])
    contents = "".join(published.content_hash(part) for _, part in groups)
    versions = provenance.package_versions()
    return {
        "repository": f"https://github.com/{REPOSITORY}",
        "commit": COMMIT,
        "scores_sha256": hashlib.sha256(contents.encode()).hexdigest(),
        "rows": len(scores),
        "computed": datetime.now(UTC).date().isoformat(),
        "packages": {name: versions[name] for name in ("python", "numpy", "scipy", "pandas")},
    }


# -- the ledger -------------------------------------------------------------------------------------------


def verdict(checks: tuple[Check, ...]) -> tuple[str, str]:
    """One of `VERDICTS` by the rule that notebook 07 states, and what fails (empty where nothing does)."""
    if not checks:
        return "cannot be checked", ""
    failed = [check for check in checks if not check.passed]
    reason = "; ".join(check.failure for check in failed)
    for kind, word in _BY_FAILURE.items():
        if any(getattr(check, kind) for check in failed):
            return word, reason
    return ("holds weakly" if failed else "holds"), reason


def ledger(results: Tables) -> pd.DataFrame:
    """The ledger, one row per claim.

    Parameters
    ----------
    results
        Tables of `statistics.compute` or `load_results`.

    Returns
    -------
    DataFrame
        `id, fact, claim, place, given, recomputed, low, high` (95 %, whole patients drawn; NaN where there is
        none), `verdict`, `reason`, `section`.

    Raises
    ------
    PublishedError
        A table is absent.
    """
    rows = []
    for claim in load_claims().itertuples():
        try:
            found = EVIDENCE[claim.id](results)
        except KeyError as error:
            raise PublishedError(
                f"results: no table or value {error} for the claim {claim.id}; record them again with "
                "echovlsm published compute --scores PATH"
            ) from error
        word, reason = verdict(found.checks) if found.finding else (VERDICTS[-1], "")
        reason = "; ".join(text for text in (reason, found.note) if text)
        told = {"recomputed": found.recomputed, "low": found.low, "high": found.high}
        rows.append(claim._asdict() | told | {"verdict": word, "reason": reason})
    first = ["id", "fact", "claim", "place", "given", "recomputed", "low", "high"]
    table = pd.DataFrame(rows, columns=[*first, "verdict", "reason", "section"])
    return table.astype({"fact": "Int64", "low": float, "high": float})


def our_runs(results: str | Path) -> pd.DataFrame:
    """Mean Dice of our recorded runs on real images, one row per run and strategy.

    Parameters
    ----------
    results
        Folder of recorded runs; searched at every depth. Runs of the queue lie in its folder `study`.

    Returns
    -------
    DataFrame
        `scale, cohort, split, model, prompt, encoders, seed, strategy, dice` (percent, mean over masks),
        `masks`. `split` is that of the patients scored (`evaluate_on` of the run's record). Runs on phantoms
        are left out: they say nothing about the paper. Empty where there is none.
    """
    key = ["scale", "cohort", "split", "model", "prompt", "encoders", "seed", "strategy"]
    parts = [pd.DataFrame(columns=[*key, "dice", "masks"])]
    for record, found in find_runs(results).values():
        asked = (record.get("evaluation") or {}).get("parameters") or {}
        found = found.assign(split=asked.get("evaluate_on", "split not recorded"))
        parts.append(found.groupby(key)["dice"].agg(dice="mean", masks="size").reset_index())
    parts.append(answers.study_cells(answers.Records(Path(results) / "study")))
    table = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    return table.assign(dice=100 * table["dice"]).drop_duplicates(key, ignore_index=True)


def with_our_runs(table: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """The ledger with a column `ours <scale>` for each scale that has runs.

    A claim about one strategy gets its mean Dice, one about two their difference in the same model, prompt,
    encoders, cohort, split and seed; the range where there are several, and in brackets the split that was
    scored; `NA` where there is none.
    """
    result = table.copy()
    strategies = load_claims().set_index("id")["ours"].str.split()
    cell = ["cohort", "split", "model", "prompt", "encoders", "seed"]
    for scale in ("smoke", "demo", "full"):
        part = ours[ours["scale"] == scale]
        if part.empty and scale != "full":
            continue
        wide = part.set_index([*cell, "strategy"])["dice"].unstack("strategy")
        result[f"ours {scale}"] = [_told(wide, strategies[name]) for name in table["id"]]
    return result


def _told(wide: pd.DataFrame, wanted: list[str]) -> str:
    """The Dice of one strategy, or the difference of two, by split; `wide`: a column a strategy."""
    if not wanted or not set(wanted) <= set(wide):
        return "NA"
    values = wide[wanted[0]] - (wide[wanted[1]] if len(wanted) == 2 else 0)
    ranges = []
    for split, group in values.dropna().round(2).groupby("split"):
        low, high = group.min(), group.max()
        ranges.append((f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}") + f" ({split})")
    return "; ".join(ranges) or "NA"


# -- our runs beside the authors' -------------------------------------------------------------------------


class Beside(NamedTuple):
    """A run of ours beside the authors' nearest one, on the same masks."""

    name: str
    strategy: str
    theirs: str
    """Their run in words."""
    scale: str
    pairs: pd.DataFrame
    """Of `pair_runs`."""
    table: pd.DataFrame
    """Of `compare_runs`."""


def find_runs(results: str | os.PathLike[str]) -> dict[str, tuple[dict[str, Any], pd.DataFrame]]:
    """Our recorded runs on real images, by their path below `results`: the record and the scores table.

    Runs of another kind (phantoms, synthetic cohorts) and scores without a record are left out.
    """
    found = {}
    for path in sorted(Path(results).rglob("scores.parquet")):
        place = path.with_name("run.yaml")
        remedy = "restore this result, or take its folder away"
        record = files.read_yaml(place, PublishedError, remedy) if place.is_file() else {}
        if record.get("kind") == "real":
            table = scoring.three_structures(files.read_table(path, PublishedError, remedy))
            found[path.parent.relative_to(results).as_posix()] = record, table
    return found


def their_run(scores: pd.DataFrame, model: str, prompt: str, strategy: str) -> tuple[dict[str, str], bool]:
    """The authors' run to compare one of ours with (such as `clipseg`, `P1`, `real`).

    Returns
    -------
    dict, bool
        Model, prompt and strategy of theirs, and whether they are the same as ours. They have no zero-shot
        and no joint run; then it is their best, over the models that they tabulate.
    """
    cells = scores[scores["model"].isin(PAPER_MODELS)].groupby(_CELL)["dice"].mean()
    same = ({"clipseg": "CLIPSeg", "cris": "CRIS"}.get(model.lower(), model), prompt, strategy)
    chosen = same if same in cells.index else cells.idxmax()
    return dict(zip(_CELL, chosen, strict=True)), chosen == same


def pair_runs(
    ours: pd.DataFrame,
    scores: pd.DataFrame,
    mapping: Mapping[str, str] | pd.Series,
    *,
    our_strategy: str,
    run: Mapping[str, str],
) -> pd.DataFrame:
    """Our Dice and theirs of the same masks.

    Parameters
    ----------
    ours
        Scores table of one run (`scoring.score_table`, `data/results/*/scores.parquet`), Dice as a fraction.
    scores, mapping
        Of `load_scores`, and old testing number to patient, of `legacy_testing_map`.
    our_strategy
        Rows of `ours` to compare.
    run
        The authors' `model`, `prompt` and `strategy`.

    Returns
    -------
    DataFrame
        One row per mask that both have: `patient, view, phase, structure`, `ours`, `theirs` (percent).

    Raises
    ------
    PublishedError
        The strategy or the authors' run does not exist, a mask twice, or no mask in common.
    """
    absent = [name for name in (*_MASK, *_CELL, "dice") if name not in ours]
    if absent:
        raise PublishedError(f"ours: no column {', '.join(absent)}; give a run's scores.parquet")
    mine = ours[ours["strategy"] == our_strategy]
    if mine.empty:
        known = ", ".join(ours["strategy"].unique())
        raise PublishedError(f"our_strategy: {our_strategy!r} is not in the scores; there are {known}")
    if mine.duplicated(_MASK).any():
        raise PublishedError("ours: a mask is scored twice; select one run (model, prompt, encoders, seed)")
    wanted = {name: run[name] for name in _CELL}
    their = scores[(scores[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    if their.empty:
        raise PublishedError(f"scores: the authors have no run {', '.join(wanted.values())}")
    theirs = their.assign(
        patient=their["legacy_test_patient"].map(dict(mapping)), structure=their["label"].map(STRUCTURES)
    )
    theirs = theirs.set_index(_MASK)["dice"].rename("theirs")
    pairs = mine.set_index(_MASK)["dice"].mul(100).rename("ours").to_frame().join(theirs, how="inner")
    if pairs.empty:
        raise PublishedError(
            "ours: no mask of CAMUS's testing patients; score the run with evaluate_on=test on the whole "
            "public release"
        )
    return pairs.reset_index()


def compare_runs(pairs: pd.DataFrame) -> pd.DataFrame:
    """Paired comparison of our Dice with theirs (of `pair_runs`), over all masks and by structure.

    Returns
    -------
    DataFrame
        One row `all` and one a structure: `masks, patients, ours, theirs, difference` (ours - theirs, percent
        Dice), `low`, `high` (95 %, whole patients drawn), `p_patient` (Wilcoxon over patients' means,
        two-sided), `p_patient_holm` (over the structures; NaN for `all`), `higher` (share of masks).
    """
    rows = []
    for name, part in (("all", pairs), *pairs.groupby("structure")):
        means = part.groupby("patient")[["ours", "theirs"]].mean()
        difference = part["ours"] - part["theirs"]
        low, high = statistics.bootstrap_interval(difference, part["patient"])
        rows.append(
            {
                "structure": name,
                "masks": len(part),
                "patients": len(means),
                "ours": float(part["ours"].mean()),
                "theirs": float(part["theirs"].mean()),
                "difference": float(difference.mean()),
                "low": low,
                "high": high,
                "p_patient": statistics.paired_test(means["ours"], means["theirs"])["p"],
                "higher": float((difference > 0).mean()),
            }
        )
    table = pd.DataFrame(rows)
    table.insert(9, "p_patient_holm", np.r_[np.nan, statistics.holm(table["p_patient"].iloc[1:])])
    return table


def beside_theirs(
    results: str | os.PathLike[str], scores: pd.DataFrame, mapping: Mapping[str, str] | pd.Series
) -> list[Beside]:
    """Our recorded runs that were scored on the testing patients, each beside the authors' nearest one.

    `scores` and `mapping` are of `load_scores` and `legacy_testing_map`.
    """
    found = []
    for name, (_, ours) in find_runs(results).items():
        if not set(ours["patient"]) & set(mapping):
            continue
        for strategy, part in ours.groupby("strategy"):
            run, same = their_run(scores, part["model"].iloc[0], part["prompt"].iloc[0], strategy)
            pairs = pair_runs(ours, scores, mapping, our_strategy=strategy, run=run)
            theirs = " ".join(run.values()) + ("" if same else " (their best)")
            found.append(Beside(name, strategy, theirs, ours["scale"].iloc[0], pairs, compare_runs(pairs)))
    return found

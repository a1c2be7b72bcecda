"""The claims ledger: what the paper says, the number it gives, the number recomputed, and a verdict by rule.

The claims stand in `data/published/claims.csv`. Which checks the released material allows for each is chosen
by hand (`evidence.EVIDENCE`); whether they pass is computed, and the verdict follows by the rule that
notebook 07 states. `ledger` takes the tables of `statistics.compute`, fresh or recorded.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from echovlsm.published import runs, scores, statistics
from echovlsm.published.evidence import EVIDENCE, Check, Tables
from echovlsm.published.scores import PublishedError, load_claims
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


def verdict(checks: tuple[Check, ...]) -> tuple[str, str]:
    """One of `VERDICTS` by the rule that notebook 07 states, and what fails (empty where nothing does)."""
    if not checks:
        return "cannot be checked", ""
    failed = [check for check in checks if not check.passed]
    reason = "; ".join(check.failure for check in failed)
    for word in ("premise", "essential", "against"):
        if any(getattr(check, word) for check in failed):
            return _BY_FAILURE[word], reason
    return ("holds weakly" if failed else "holds"), reason


def ledger(results: Tables) -> pd.DataFrame:
    """The ledger, one row per claim.

    Parameters
    ----------
    results
        Tables of `statistics.compute` or `scores.load_results`.

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
    table = pd.DataFrame(rows)[[*first, "verdict", "reason", "section"]]
    return table.astype({"fact": "Int64", "low": float, "high": float})


# -- our own runs -----------------------------------------------------------------------------------------


def our_runs(results: str | Path) -> pd.DataFrame:
    """Mean Dice of our recorded runs on real images, one row per run and strategy.

    Parameters
    ----------
    results
        Folder of recorded runs, such as `data/results/camus`; searched at every depth. Runs of the queue lie
        in its folder `study`.

    Returns
    -------
    DataFrame
        `scale, cohort, split, model, prompt, encoders, seed, strategy, dice` (percent, mean over masks),
        `masks`. `split` is that of the patients scored (`evaluate_on` of the run's record). Runs on phantoms
        are left out: they say nothing about the paper. Empty where there is none.
    """
    key = ["scale", "cohort", "split", "model", "prompt", "encoders", "seed", "strategy"]
    parts = []
    for record, found in runs.find_runs(results).values():
        asked = (record.get("evaluation") or {}).get("parameters") or {}
        found = found.assign(split=asked.get("evaluate_on", "split not recorded"))
        parts.append(found.groupby(key)["dice"].agg(["mean", "size"]).reset_index())
    study = answers.study_cells(answers.Records(Path(results) / "study"))
    if not parts and study.empty:
        return pd.DataFrame(columns=[*key, "dice", "masks"])
    parts.append(study.rename(columns={"dice": "mean", "masks": "size"}))
    table = pd.concat(parts, ignore_index=True).rename(columns={"mean": "dice", "size": "masks"})
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
        texts = []
        for name in table["id"]:
            wanted = strategies[name]
            if not wanted or any(strategy not in wide for strategy in wanted):
                texts.append("NA")
                continue
            values = wide[wanted[0]] - (wide[wanted[1]] if len(wanted) == 2 else 0)
            ranges = []
            for split, group in values.dropna().round(2).groupby("split"):
                low, high = group.min(), group.max()
                ranges.append((f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}") + f" ({split})")
            texts.append("; ".join(ranges) or "NA")
        result[f"ours {scale}"] = texts
    return result


def compute(
    path: str | Path | None = None, prompts: str | Path | None = None, out: str | Path | None = None
) -> tuple[Path, int]:
    """Recompute the tables that pages render from where the authors' scores are absent.

    Parameters
    ----------
    path
        The scores, as for `scores.load_scores`.
    prompts
        Folder of the authors' prompts; by default what is recorded of them.
    out
        Folder of the tables; by default that of the recorded ones.

    Returns
    -------
    tuple
        That folder, and how many tables it got.
    """
    found = scores.load_scores(path)
    results = statistics.compute(found, prompts)
    if "words_of_p6" not in results:
        results["words_of_p6"] = scores.load_results()[0]["words_of_p6"]
    results["ledger"] = ledger(results)
    target = Path(out or scores.data_folder() / "results")
    scores.save_results(results, scores.source_of(found), target)
    return target, len(results)

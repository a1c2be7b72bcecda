"""The paper's published numbers: read and checked, recomputed; and what the released code computed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from echovlsm import STRUCTURES
from echovlsm.cohort import read as cohort
from echovlsm.cohort.files import CohortError
from echovlsm.published import claims, headlines, tables
from echovlsm.published import code as published_code
from echovlsm.published import scores as published
from echovlsm.published import statistics as published_statistics
from echovlsm.published.scores import MASK, PublishedError
from tests.conftest import ROOT, call


@pytest.fixture(scope="session")
def scores(shared: Path) -> pd.DataFrame:
    return published.load_scores(shared / "published" / "scores_per_image.csv.gz")


def toy_masks(patients: int = 50) -> pd.DataFrame:
    """The names of 12 masks for each patient."""
    names = [f"patient{i:04d}" for i in range(1, patients + 1)]
    return pd.MultiIndex.from_product([names, ["2CH", "4CH"], ["ED", "ES"], [1, 2, 3]], names=MASK).to_frame(
        index=False
    )


def toy_scores(gain: float = 0.0, seed: int = 0, patients: int = 50) -> pd.DataFrame:
    """Scores in the released layout: `synth-PT:real-FT` is `real` plus `gain`, `synthetic` is 5 lower."""
    rng = np.random.default_rng(seed)
    parts = []
    for model in (*published.PAPER_MODELS, published.EXTRA_RUN):
        for level in range(8):
            masks = toy_masks(patients)
            patient = masks["legacy_test_patient"].map(
                dict(zip(masks["legacy_test_patient"].unique(), rng.normal(0, 3, patients), strict=True))
            )
            for strategy, shift in (("real", 0.0), ("synth-PT:real-FT", gain), ("synthetic", -5.0)):
                if strategy == "synthetic" and level == 7:
                    continue
                own = rng.normal(0, 1, len(masks))
                parts.append(
                    masks.assign(
                        strategy=strategy,
                        model=model,
                        prompt=f"P{level}",
                        dice=(85 + patient + own + shift).round(4),
                        iou=75.0,
                        hausdorff=(100 * np.sqrt(rng.integers(9, 900, len(masks)))).round(4),
                        dice_of_all_foreground=20.0,
                    )
                )
    return pd.concat(parts, ignore_index=True)[published.COLUMNS]


def write_repository(folder: Path, table: pd.DataFrame) -> None:
    """The authors' 69 files, in the layout of their repository, rows in an order of their own."""
    for row in published.registered().itertuples():
        part = table.query("strategy == @row.strategy and model == @row.model and prompt == @row.prompt")
        part = part.sample(frac=1, random_state=1)
        name = "/home/x/mask_" + part["label"].astype(str) + "/" + part["legacy_test_patient"] + "_"
        out = pd.DataFrame(
            {
                "filename": name + part["view"] + "_" + part["phase"] + "_gt.png",
                "iou": part["iou"],
                "dice": part["dice"],
                "hausdorff_distance": part["hausdorff"],
                "ones_dice_diff": part["dice"] - part["dice_of_all_foreground"],
                "zeros_dice_diff": part["dice"],
            }
        )
        (folder / row.path).parent.mkdir(parents=True, exist_ok=True)
        out.to_csv(folder / row.path, index=False, float_format="%.4f")


# -- reading ----------------------------------------------------------------------------------------------


def test_the_tables_have_every_cell_of_the_paper() -> None:
    tables = published.load_tables()
    assert len(tables) == 112
    assert tables["dice_mean"].isna().sum() == tables["dice_sd"].isna().sum() == 4
    assert set(tables.loc[tables["dice_mean"].isna(), "prompt"]) == {"P7"}
    assert dict(tables.groupby("table")["encoders"].unique().str[0]) == {
        "Table 2": "unfrozen",
        "Table 3": "frozen",
    }


def test_the_registry_names_69_files_with_600_masks_each() -> None:
    files = published.registered()
    assert len(files) == files["path"].nunique() == files["sha256"].nunique() == 69
    assert (files["rows"] == 600).all()
    assert not ((files["strategy"] == "synthetic") & (files["prompt"] == "P7")).any()


def test_a_folder_of_the_authors_files_reads_like_the_table(tmp_path: Path) -> None:
    table = toy_scores()
    write_repository(tmp_path, table)
    found = published.load_scores(tmp_path, verify=False)
    key = ["strategy", "model", "prompt", *MASK]
    expected = table.sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(found[published.COLUMNS], expected, check_dtype=False, atol=2e-4)
    assert set(found["structure"]) == set(STRUCTURES.values())
    pd.testing.assert_frame_equal(published.load_scores(tmp_path / "metrics", verify=False), found)


def test_other_scores_than_the_authors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv.gz"
    toy_scores().to_csv(path, index=False)
    with pytest.raises(PublishedError, match=r"scores: .*differs from the authors' scores in 69 of 69"):
        published.load_scores(path)


def test_bad_paths_name_the_parameter_and_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(PublishedError, match=r"^scores: .*does not exist; give scores_per_image"):
        published.load_scores(tmp_path / "nothing.csv.gz")
    with pytest.raises(PublishedError, match=r"lacks 69 of the authors' 69 files"):
        published.load_scores(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PublishedError, match="has no column strategy"):
        published.load_scores(tmp_path / "other.csv")
    (tmp_path / "broken.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(PublishedError, match="is not a table that can be read"):
        published.load_scores(tmp_path / "broken.csv.gz")


def test_the_hash_of_a_content_ignores_order_and_sees_a_digit() -> None:
    part = toy_scores().query("strategy == 'real' and model == 'CRIS' and prompt == 'P1'")
    mixed = part.sample(frac=1, random_state=3)
    assert published.content_hash(mixed) == published.content_hash(part)
    other = part.copy()
    other.iloc[17, other.columns.get_loc("dice")] += 1e-4
    assert published.content_hash(other) != published.content_hash(part)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server of a folder: its address and the folder."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}/", folder
    httpd.shutdown()


def test_downloads_are_checked_by_content(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    table = toy_scores()
    write_repository(folder, table)
    hashes = {key: published.content_hash(p) for key, p in table.groupby(["strategy", "model", "prompt"])}
    registry = published.registered()
    registry["sha256"] = [hashes[row.strategy, row.model, row.prompt] for row in registry.itertuples()]
    monkeypatch.setattr(published, "registered", lambda: registry)
    cache = published.fetch_scores(tmp_path / "cache", url)
    assert len(published.load_scores(cache)) == 69 * 600
    # a download that broke off is fetched once more, also where the folder is named from here
    victim = registry["path"].iloc[5]
    text = (folder / victim).read_text()
    (cache / victim).write_text(text[:500])
    monkeypatch.chdir(tmp_path)
    assert published.fetch_scores("cache", url) == cache.resolve()
    assert (cache / victim).read_text() == text
    # a changed file, here and there, is neither taken nor kept
    (folder / victim).write_text(text.replace("75.0000", "76.0000", 1))
    shutil.copy(folder / victim, cache / victim)
    with pytest.raises(PublishedError, match="is not the authors' file"):
        published.fetch_scores(cache, url)
    assert not (cache / victim).exists()


def test_without_a_connection_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PublishedError, match=r"cannot download .*parameter `scores`"):
        published.fetch_scores(tmp_path, "http://127.0.0.1:9/")


# -- recomputing ------------------------------------------------------------------------------------------


def test_every_released_cell_equals_the_papers_to_two_decimals(scores: pd.DataFrame) -> None:
    cells = published_statistics.check_cells(scores)
    assert cells["equal"].value_counts().to_dict() == {"yes": 46, "not released": 16, "N/A in the paper": 2}
    checked = cells[cells["equal"] == "yes"]
    assert (checked["mean"].round(2) - checked["given_mean"]).abs().max() < 1e-6
    assert (checked["sd"].round(2) - checked["given_sd"]).abs().max() < 1e-6


def test_a_cell_that_differs_is_called_so() -> None:
    cells = published_statistics.check_cells(toy_scores())
    assert (cells.loc[cells["strategy"] != "zeroshot", "equal"] == "no").sum() == 46


def test_both_p_values_of_the_text_come_out_to_two_digits(scores: pd.DataFrame) -> None:
    head = published_statistics.headline_tests(scores).set_index(["test", "alternative"])
    assert f"{head.loc[('synthetic vs real', 'less'), 'p']:.1e}" == "8.8e-73"
    assert f"{head.loc[('PT-FT vs real', 'greater'), 'p']:.1e}" == "8.3e-06"
    assert not head.xs("two-sided", level="alternative")["same"].any()
    assert head.loc[("synthetic vs real", "less"), "difference"] == pytest.approx(-5.19, abs=0.005)


def test_results_on_record_are_what_the_scores_give(scores: pd.DataFrame, shared: Path) -> None:
    """Fails when a recomputed value drifts from the recorded one, the ledger included."""
    recorded, source = published.load_results()
    fresh = claims.results_of(scores, shared / "published")
    assert claims.drift(fresh, recorded) == []
    assert source["scores_sha256"] == claims.source_of(scores)["scores_sha256"]


def test_drift_sees_a_changed_value_however_small_and_a_missing_table() -> None:
    recorded, _ = published.load_results()
    changed = {name: table.copy() for name, table in recorded.items()}
    assert claims.drift(changed, recorded) == []
    changed["selection"].loc[0, "difference"] *= 1.001
    del changed["facts"]
    tiny = changed["headline"]["p"].idxmin()
    assert changed["headline"].loc[tiny, "p"] < 1e-50
    changed["headline"].loc[tiny, "p"] *= 1.01  # 8.8e-73 for 8.9e-73 is a change, although both are near zero
    assert claims.drift(changed, recorded) == ["facts", "headline", "selection"]


def test_comparisons_by_quality_are_no_drift() -> None:
    """They need the public release and are never on record."""
    recorded, _ = published.load_results()
    more = recorded["comparisons"].iloc[:2].assign(factor="quality")
    fresh = pd.concat([recorded["comparisons"], more], ignore_index=True)
    assert claims.drift({**recorded, "comparisons": fresh}, recorded) == []


@pytest.mark.parametrize(("gain", "expected"), [(0.0, False), (1.0, True)])
def test_corrected_comparisons_find_a_gain_and_only_a_gain(
    gain: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_statistics, "FACTORS", ("all", "view"))
    monkeypatch.setattr(published_statistics, "DRAWS", 2000)
    table = toy_scores(gain=gain, seed=5, patients=25)
    cells = published_statistics.family(published_statistics.compare_all(table), "PT-FT vs real")
    assert len(cells) == 16
    assert (cells["patients"] == 25).all()
    for column in ("p_patient_holm", "p_max"):
        assert (cells[column] < 0.05).all() if expected else (cells[column] > 0.05).all(), column
    if expected:
        assert cells["difference"].between(0.7, 1.3).all()
        assert ((cells["low"] < 1.0) & (cells["high"] > 1.0)).mean() > 0.7


def test_choosing_again_finds_no_gain_where_there_is_none() -> None:
    p = [
        published_statistics.selection_tests(toy_scores(seed=seed))
        .set_index("test")
        .loc["PT-FT vs real", "p_exchangeable"]
        for seed in range(6)
    ]
    assert np.median(p) > 0.1
    row = published_statistics.selection_tests(toy_scores(gain=1.0)).set_index("test").loc["PT-FT vs real"]
    assert row["p_exchangeable"] < 0.001
    assert row["low"] < row["difference"] < row["high"]
    assert row["unseen"] == pytest.approx(1.0, abs=0.3)


def test_the_gain_is_estimated_from_scores_and_from_the_frozen_table() -> None:
    """Frozen: by hand from Table 3. Scores: rows made up here."""
    rows = pd.DataFrame(
        {
            "test": "PT-FT vs real",
            "factor": "all",
            "model": "CRIS",
            "prompt": ["P0", *(f"P{level}" for level in range(1, 8)), published_statistics.WORDED],
            "difference": [-9.0, -0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.3],
            "low": 0.25,
            "high": 0.35,
        }
    )
    gains = published_statistics.pooled_gains(rows).set_index(["from", "model"])
    own = gains.loc["Table 2, scores", "CRIS"]
    assert tuple(own[["cells", "higher"]]) == (7, 6)
    assert own["mean"] == pytest.approx(2.1 / 7)
    assert tuple(own[["lowest", "highest", "low", "high"]]) == (-0.1, 0.7, 0.25, 0.35)
    frozen = gains.loc["Table 3, means only"]
    assert (frozen["higher"] == 7).all()
    by_hand = (89.07 + 89.09 + 89.24 + 89.24 + 88.91 + 89.12 + 89.14) - (
        88.81 + 89.04 + 88.65 + 89.05 + 88.54 + 88.61 + 88.54
    )
    assert frozen.loc["CLIPSeg", "mean"] == pytest.approx(by_hand / 7)
    assert frozen["low"].isna().all()


def test_the_limit_of_two_trainings_is_twice_the_root_mean_square() -> None:
    rows = pd.DataFrame(
        {
            "strategy": ["real"] * 4 + ["synthetic"],
            "model": ["CLIPSeg"] * 3 + ["CRIS", "CLIPSeg"],
            "prompt": ["P0", "P1", "P2", "P1", "P1"],
            "difference": [50.0, 3.0, 4.0, 9.0, 7.0],
        }
    )
    found = published_statistics.two_trainings(rows, ["real"])
    assert found["cells"] == 2
    assert found["limit"] == pytest.approx(2 * 12.5**0.5)
    assert found["rms_low"] < found["rms"] < found["rms_high"]
    assert published_statistics.limit(rows, "synthetic vs real") == pytest.approx(2 * (74 / 3) ** 0.5)


def test_holm_within_groups_counts_every_row_of_a_test() -> None:
    rows = pd.DataFrame(
        {
            "test": ["a", "a", "a", "b", "a"],
            "factor": ["view", "view", "phase", "view", "all"],
            "level": "x",
            "model": "CRIS",
            "prompt": published_statistics.WORDED,
            **dict.fromkeys(("difference", "low", "high"), 0.0),
            "p_patient": [0.01, 0.02, 0.04, 0.04, 0.001],
        }
    )
    found = published_statistics.by_group(rows)
    assert found["p_holm"].tolist() == pytest.approx([0.03, 0.04, 0.04, 0.04])


def test_a_p_value_at_the_floor_of_the_draws_is_a_bound() -> None:
    assert headlines.format_p(headlines.FLOOR) == "≤ 1e-04"
    assert headlines.format_p(2 * headlines.FLOOR) == "2.0e-04"
    shown = [headlines.show_p(p) for p in (0.00713, 0.78, 1.0, 1.8e-15, float("nan"))]
    assert shown == ["0.0071", "0.78", "1", "1.8e-15", ""]


def test_tables_for_readers_have_words_and_keep_numbers() -> None:
    table = pd.DataFrame(
        {"strategy": ["synth-PT:real-FT", "real"], "same": [True, False], "low": [1.0, 0.0], "n": [1, 0]}
    )
    shown = tables.readable(table, {"n": "masks"})
    assert list(shown) == ["strategy", "agrees", "95 % low", "masks"]
    assert shown["strategy"].tolist() == ["PT-FT", "real"]
    assert shown["agrees"].tolist() == ["yes", "no"]
    assert shown["95 % low"].tolist() == [1.0, 0.0]
    assert table["same"].tolist() == [True, False]


def test_the_two_tests_are_told_with_the_papers_own_contradiction() -> None:
    head = published.load_results()[0]["headline"]
    text = tables.headline_text(head)
    assert "its own Table 2 gives 91.39 − 91.03 = +0.36" in text
    assert "CRIS with P5 (synthetic) against CRIS with P2 (real)" in text
    assert "but only from one-sided tests; two-sided ones are twice as large." in text
    # a p-value that does not come out again takes the sentence with it
    other = head.assign(same=head["same"] & (head["test"] == "synthetic vs real"))
    assert tables.headline_text(other).endswith("1 of 2 p-values come out again.")


def test_what_survives_follows_the_evidence() -> None:
    recorded = published.load_results()[0]
    before = tables.survival(recorded)
    assert before.loc["significantly in the other direction", "PT-FT vs real"] == "2"
    chance = recorded["comparisons"].assign(p_patient_holm=0.4, p_max=0.4)
    after = tables.survival({**recorded, "comparisons": chance})
    assert not after.iloc[1:3].astype(bool).any(axis=None)
    assert (after.loc["of these significant"] == "0").all()
    assert "CLIPSeg" in tables.empty_prompt_lost(recorded["comparisons"])
    assert tables.empty_prompt_lost(chance) == "no model significantly lower"


def test_the_union_of_true_masks_has_the_dice_of_geometry() -> None:
    """Three bars of 10, 20 and 30 rows in an image of 100: the union against each is worked out by hand."""
    table = toy_scores(patients=2)
    share = table["label"].map({1: 0.1, 2: 0.2, 3: 0.3})
    table["dice_of_all_foreground"] = 100 * 2 * share / (share + 1)
    union = published_statistics.empty_prompt(table)["union"].iloc[0]
    assert union == pytest.approx(100 * np.mean([20 / 70, 40 / 80, 60 / 90]))


def test_scores_that_are_not_the_authors_leave_no_results(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv.gz"
    toy_scores().to_csv(path, index=False)
    assert call("published", "compute", "--scores", path, "--out", tmp_path / "out").exit_code == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(PublishedError, match="nothing recorded"):
        published.load_results(tmp_path)


# -- what the released code computed ------------------------------------------------------------------------


def test_transformers_clipseg_gives_its_encoders_no_gradient() -> None:
    """The real class of the installed Transformers, every parameter asking for a gradient."""
    parts = published_code.encoder_gradients().set_index("part")
    assert (parts["requires_grad"] == parts["tensors"]).all()
    encoders, decoder = parts.loc[["clip.vision_model", "clip.text_model"]], parts.loc["decoder"]
    assert (encoders[["with_gradient", "moved"]] == 0).all(axis=None)
    assert decoder["with_gradient"] == decoder["moved"] == decoder["tensors"]


def test_cross_entropy_over_one_channel_is_zero_and_flat() -> None:
    old, new = published_code.one_channel_loss().to_dict("records")
    assert old["cross_entropy"] == old["gradient"] == 0
    assert old["total"] == pytest.approx(old["dice"])
    assert new["cross_entropy"] > 0.1
    assert new["gradient"] > 0
    assert new["dice"] == pytest.approx(old["dice"])


def test_a_mask_of_zeros_hides_no_padding() -> None:
    cris, right = published_code.padding_mask().to_dict("records")
    assert (cris["masked"], right["masked"]) == (0, right["padding"])
    assert right["attention on padding"] == 0
    assert cris["attention on padding"] > 0.5
    own = published_code.padding_mask(padded_with=0).to_dict("records")[0]
    assert own["masked"] == own["padding"]  # with CRIS's own tokenizer the mask works


def test_what_p6_adds_is_counted(tmp_path: Path) -> None:
    def write(name: str, sixth: list[str]) -> None:
        entries = [{"prompts": {"p5": ["Myocardium."], "p6": [text]}} for text in sixth]
        (tmp_path / name).write_text(json.dumps(entries))

    real, synthetic = published.PROMPT_FILES.values()
    write(real, ["Myocardium with good image quality.", "Myocardium."])
    with pytest.raises(PublishedError, match=r"prompts: .*sdm.* cannot be read"):
        published_statistics.words_of_p6(tmp_path)
    write(synthetic, ["Myocardium of oval shape.", "Myocardium of square shape."])
    words = published_statistics.words_of_p6(tmp_path).set_index("cohort")
    assert tuple(words.loc["real", ["pairs", "says quality", "says shape"]]) == (2, 0.5, 0)
    assert tuple(words.loc["synthetic", ["says quality", "says shape"]]) == (0, 1)


def test_the_authors_own_prompts_say_the_same_of_p6(shared: Path) -> None:
    words = published_statistics.words_of_p6(shared / "published").set_index("cohort")
    assert (words["pairs"] == 600).all()
    assert tuple(words.loc["real", ["says quality", "says shape"]]) == (1, 0)
    assert tuple(words.loc["synthetic", ["says quality", "says shape"]]) == (0, 1)


def test_hausdorff_values_are_a_hundred_times_pixels_at_512(scores: pd.DataFrame) -> None:
    found = published_statistics.hausdorff_unit(scores)
    assert found["hausdorff_whole_squares"] == 1
    assert found["grid_deviation"] < 0.02
    assert min(found["grid_deviation_352"], found["grid_deviation_416"]) > 0.2
    millimetres = scores.assign(hausdorff=scores["hausdorff"] * 0.308)
    assert published_statistics.hausdorff_unit(millimetres)["hausdorff_whole_squares"] < 0.1


@pytest.mark.parametrize("order", [(1, 2, 3), (2, 1, 3), (3, 2, 1), (2, 3, 1)])
def test_the_order_of_labels_shows_in_the_shapes(order: tuple[int, int, int]) -> None:
    y, x = np.mgrid[:120, :100]
    labels = np.zeros((120, 100), int)
    wall = ((x - 50) / 32) ** 2 + ((y - 60) / 52) ** 2 <= 1
    cavity = ((x - 50) / 20) ** 2 + ((y - 62) / 40) ** 2 <= 1
    atrium = ((x - 50) / 24) ** 2 + ((y - 95) / 20) ** 2 <= 1
    labels[wall & (y < 75)] = order[1]
    labels[cavity & (y < 78)] = order[0]
    labels[atrium & (y >= 78)] = order[2]
    assert published_code.label_order(labels) == dict(zip(order, STRUCTURES.values(), strict=True))


def test_the_order_of_labels_is_found_in_exchanged_phantoms() -> None:
    demo = published_code.label_order_demo(patients=2)
    assert (demo["order found"] == 1).all()
    assert demo["2"].tolist() == ["myocardium", "left ventricular cavity", "left atrium cavity"]


def test_the_order_of_labels_is_right_for_real_masks(shared: Path) -> None:
    from echovlsm.cohort.images import load_labels
    from echovlsm.cohort.read import read_cohort

    rows = list(read_cohort(shared / "camus").iloc[::45].itertuples())
    assert all(published_code.label_order(load_labels(row)) == STRUCTURES for row in rows)


def test_the_order_of_labels_needs_three_labels() -> None:
    with pytest.raises(ValueError, match="labels: 1 labels besides 0"):
        published_code.label_order(np.eye(8, dtype=int))


def test_settings_name_where_they_stand() -> None:
    settings = published.load_settings()
    assert {"weight of the cross entropy", "output threshold", "epoch that is kept"} <= set(
        settings["setting"]
    )
    assert settings["where"].str.contains("@").all()


# -- whose images, and ours beside theirs -----------------------------------------------------------------


def write_list(folder: Path, names: list[str]) -> Path:
    (folder / "database_split").mkdir(parents=True, exist_ok=True)
    (folder / "database_split" / "subgroup_testing.txt").write_text("\n".join(names) + "\n")
    return folder


def test_the_ith_old_testing_patient_is_the_ith_listed(tmp_path: Path) -> None:
    names = [f"patient{i:04d}" for i in range(27, 427, 8)]
    mapping = cohort.legacy_testing_map(write_list(tmp_path, names))
    assert list(mapping) == names
    assert (mapping.index[0], mapping.index[-1]) == ("patient0001", "patient0050")
    assert mapping["patient0003"] == "patient0043"


def test_a_shortened_list_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"root: .*subgroup_testing.txt; give the folder"):
        cohort.legacy_testing_map(tmp_path)
    write_list(tmp_path, [f"patient{i:04d}" for i in range(1, 50)])
    with pytest.raises(CohortError, match="lists 49 patients"):
        cohort.legacy_testing_map(tmp_path)


def test_identity_is_told_from_areas(phantom_frames: pd.DataFrame) -> None:
    """Phantom patients under old numbers in reverse order: areas lead each back to its images."""
    from echovlsm.cohort.images import load_labels

    frames = phantom_frames.copy()
    frames["split"] = "test"
    patients = sorted(frames["patient"].unique())
    mapping = {f"patient{i:04d}": name for i, name in enumerate(reversed(patients), start=1)}
    rows = []
    for old, name in mapping.items():
        for row in frames[frames["patient"] == name].itertuples():
            labels = load_labels(row)
            for value in STRUCTURES:
                share = (labels == value).mean()
                rows.append((old, row.view, row.phase, value, round(200 * share / (share + 1), 4)))
    scores = pd.DataFrame(rows, columns=[*MASK, "dice_of_all_foreground"])
    table = published.check_identity(frames, scores, mapping)
    assert table["agrees"].all()
    assert (table["masks"] == 12).all()
    assert (table["difference"] < 1e-5).all()
    assert (table["next_best"] > table["difference"]).all()
    swapped = dict(zip(mapping, [patients[-2], patients[-1], *list(mapping.values())[2:]], strict=True))
    again = published.check_identity(frames, scores, swapped).set_index("legacy_test_patient")
    assert list(again.index[~again["agrees"]]) == ["patient0001", "patient0002"]
    with pytest.raises(PublishedError, match="no testing image with a mask"):
        published.check_identity(phantom_frames.assign(split="train"), scores, mapping)


def test_quality_is_joined_by_view_and_unknown_stays_unknown() -> None:
    scores = toy_scores(patients=2)
    frames = pd.DataFrame(
        {"patient": ["patient0027"] * 2, "view": ["2CH", "4CH"], "quality": ["good", "poor"]}
    )
    joined = published.add_quality(scores, frames, {"patient0001": "patient0027"})
    known = joined.groupby(["legacy_test_patient", "view"])["quality"].first()
    assert known["patient0001", "2CH"] == "good"
    assert known["patient0001", "4CH"] == "poor"
    assert joined.loc[joined["legacy_test_patient"] == "patient0002", "quality"].isna().all()


def toy_run(better: float) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Our scores, theirs and the map: ours is better by so many points in the cavity, equal elsewhere."""
    theirs = toy_scores(patients=10)
    mapping = {f"patient{i:04d}": f"patient{300 + i:04d}" for i in range(1, 11)}
    part = theirs.query("model == 'CRIS' and strategy == 'real' and prompt == 'P1'")
    ours = part.assign(
        patient=part["legacy_test_patient"].map(mapping),
        structure=part["label"].map(STRUCTURES),
        dice=(part["dice"] + better * (part["label"] == 1)) / 100,
        strategy="real",
    )
    return ours.sample(frac=1, random_state=0), theirs, mapping


RUN = {"model": "CRIS", "strategy": "real", "prompt": "P1"}


def test_our_run_is_compared_mask_by_mask() -> None:
    ours, theirs, mapping = toy_run(2.0)
    pairs = claims.pair_runs(ours, theirs, mapping, our_strategy="real", run=RUN)
    assert len(pairs) == 120
    table = claims.compare_runs(pairs).set_index("structure")
    assert table.loc["left ventricular cavity", "difference"] == pytest.approx(2.0)
    assert table.loc["myocardium", "difference"] == pytest.approx(0.0, abs=1e-9)
    assert table.loc["all", "difference"] == pytest.approx(2 / 3)
    assert table.loc["left ventricular cavity", "p_patient_holm"] == pytest.approx(3 * 2 / 2**10)
    assert np.isnan(table.loc["all", "p_patient_holm"])
    other = claims.pair_runs(ours, theirs, mapping, our_strategy="real", run=RUN | {"prompt": "P2"})
    assert not np.allclose(other["theirs"], pairs["theirs"])


def test_a_run_meets_its_like_and_else_the_best() -> None:
    scores = toy_scores(gain=1.0, patients=10)
    assert claims.their_run(scores, "clipseg", "P3", "real") == (
        {"model": "CLIPSeg", "prompt": "P3", "strategy": "real"},
        True,
    )
    means = scores[scores["model"] != published.EXTRA_RUN].groupby(["model", "prompt", "strategy"])["dice"]
    best, same = claims.their_run(scores, "cris", "P1", "joint")
    assert (tuple(best.values()), same) == (means.mean().idxmax(), False)


def test_only_runs_on_real_images_are_found_each_by_its_path(tmp_path: Path) -> None:
    for place, kind in (("a/x", "real"), ("b/x", "real"), ("c", "phantom"), ("d", None)):
        (tmp_path / place).mkdir(parents=True)
        pd.DataFrame({"dice": [0.5]}).to_parquet(tmp_path / place / "scores.parquet")
        if kind:
            (tmp_path / place / "run.yaml").write_text(f"kind: {kind}\n")
    assert list(claims.find_runs(tmp_path)) == ["a/x", "b/x"]


def test_the_figure_of_paired_runs_says_the_difference() -> None:
    ours, theirs, mapping = toy_run(2.0)
    pairs = claims.pair_runs(ours, theirs, mapping, our_strategy="real", run=RUN)
    beside = claims.Beside("ours", "real", "CRIS P1 real", "full", pairs, claims.compare_runs(pairs))
    figure = tables.plot_runs(beside)
    (axes,) = figure.axes
    assert "+0.7" in axes.get_title(loc="left") + axes.get_title()
    assert sum(len(points.get_offsets()) for points in axes.collections) == 120
    plt.close(figure)


def test_a_run_that_cannot_be_compared_says_why() -> None:
    ours, theirs, mapping = toy_run(0.0)
    with pytest.raises(PublishedError, match=r"our_strategy: 'joint' .*there are real"):
        claims.pair_runs(ours, theirs, mapping, our_strategy="joint", run=RUN)
    with pytest.raises(PublishedError, match="a mask is scored twice"):
        claims.pair_runs(pd.concat([ours, ours]), theirs, mapping, our_strategy="real", run=RUN)
    with pytest.raises(PublishedError, match="no mask of CAMUS's testing patients"):
        claims.pair_runs(ours, theirs, {"patient0001": "patient0499"}, our_strategy="real", run=RUN)
    with pytest.raises(PublishedError, match="have no run CRIS, P7, synthetic"):
        claims.pair_runs(
            ours, theirs, mapping, our_strategy="real", run=RUN | {"strategy": "synthetic", "prompt": "P7"}
        )
    with pytest.raises(PublishedError, match="ours: no column structure"):
        claims.pair_runs(ours.drop(columns="structure"), theirs, mapping, our_strategy="real", run=RUN)


def test_no_score_of_a_mask_is_in_the_project() -> None:
    folder = ROOT / "data" / "published"
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert "scores_per_image.csv.gz" not in names
    assert not [name for name in names if name.startswith("prompts")]
    assert sum(path.stat().st_size for path in (folder / "results").iterdir()) < 300_000
    assert all(len(table) < 600 for table in published.load_results()[0].values())

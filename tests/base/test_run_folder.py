"""Run folders and parameters: what is recorded, what is refused, and in what words."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from echovlsm.base.paths import project_root, resolve, run_path
from echovlsm.base.provenance import check_precision, weights_hash
from echovlsm.base.run_folder import RunError, RunFolder
from echovlsm.study.parameters import (
    ParameterError,
    check_parameters,
    check_values,
    coerce,
    notebook_defaults,
    notebook_parameters,
    parameters_for,
    read_profile,
)
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DECLARED = {"prompt": "str", "epochs": "int", "learning_rate": "float", "augment": "bool"}
DECLARED |= dict.fromkeys(("variant", "seeds", "cohort"), "str")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"promt": "P1"}, "unknown parameter `promt`; did you mean `prompt`"),
        ({"prompt": "P9"}, "allowed: P0, P1"),
        ({"prompt": 1}, "`prompt` must be str, not int 1"),
        ({"epochs": 2.5}, "`epochs` must be int, not float"),
        ({"epochs": True}, "`epochs` must be int, not bool"),
        ({"augment": "yes"}, "`augment` must be bool"),
        ({"zzz": 1}, "known: augment"),
    ],
)
def test_wrong_parameters_are_named(values: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_values(values, DECLARED, "test")


def test_all_wrong_parameters_are_named_at_once_and_good_ones_pass() -> None:
    check_values({"prompt": "P1", "epochs": 3, "learning_rate": 1, "augment": False}, DECLARED, "test")
    with pytest.raises(ParameterError, match=r"promt.*epoch"):
        check_values({"promt": "P1", "epochs": "3"}, DECLARED, "test")


def _namespace(injected: str) -> dict:
    """What a notebook's kernel holds when the check runs."""
    namespace: dict = {"In": ["", "", f"# Parameters\n{injected}", ""]}
    exec('profile: str = "demo"\nprompt: str = "P1"\nepochs: int = 3\n', namespace)
    exec(injected, namespace)
    return namespace


def test_a_notebook_finds_what_papermill_injected_wrongly() -> None:
    assert check_parameters(_namespace('prompt = "P2"'))["prompt"] == "P2"
    with pytest.raises(ParameterError, match="did you mean `prompt`"):
        check_parameters(_namespace('promt = "P1"'))
    with pytest.raises(ParameterError, match="`epochs` must be int"):
        check_parameters(_namespace('epochs = "many"'))


def test_a_profile_serves_all_notebooks_but_a_foreign_parameter_does_not_pass_alone() -> None:
    patients = read_profile(ROOT / "notebooks" / "profiles" / "demo.yaml")["patients"]
    check_parameters(_namespace(f"patients = {patients}"))
    with pytest.raises(ParameterError, match="`patients`"):
        check_parameters(_namespace(f"patients = {patients + 1}"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_defaults_of_every_notebook_fit_their_own_declaration(notebook: Path) -> None:
    declared, defaults = notebook_parameters(notebook), notebook_defaults(notebook)
    assert set(declared) == set(defaults)
    check_values(defaults, declared, notebook.name)


@pytest.mark.parametrize("profile", ["smoke", "demo", "camus", "camus-full", "camus-full-cris"])
def test_every_profile_fits_the_notebooks(profile: str) -> None:
    values = read_profile(ROOT / "notebooks" / "profiles" / f"{profile}.yaml")
    declared = {name: kind for notebook in NOTEBOOKS for name, kind in notebook_parameters(notebook).items()}
    check_values(values, declared, profile)
    assert values["profile"] == profile
    for notebook in NOTEBOOKS:
        assert set(parameters_for(notebook, values, {})) <= set(notebook_parameters(notebook))


def test_defaults_of_the_notebooks_are_the_demo_profile() -> None:
    """A notebook run as it is must not replace the demo run of the same name by another."""
    profile = read_profile(ROOT / "notebooks" / "profiles" / "demo.yaml")
    for notebook in NOTEBOOKS:
        defaults = notebook_defaults(notebook)
        assert {name: defaults[name] for name in profile if name in defaults} == {
            name: value for name, value in profile.items() if name in defaults
        }


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("variant", 1, "1"),
        ("seeds", 1, "1"),
        ("augment", "true", True),
        ("augment", "False", False),
        ("learning_rate", "1e-5", 1e-5),
        ("epochs", "12", 12),
        ("epochs", "many", "many"),
        ("epochs", 2.5, 2.5),
    ],
)
def test_what_a_command_line_gives_is_read_as_declared(name: str, given: object, meant: object) -> None:
    read = coerce({name: given}, DECLARED)[name]
    assert read == meant
    assert type(read) is type(meant)


def test_the_word_no_is_a_precision() -> None:
    assert coerce({"mixed_precision": False}, {"mixed_precision": "str"}) == {"mixed_precision": "no"}
    assert coerce({"prompt": False}, {"prompt": "str"}) == {"prompt": False}


def test_a_notebook_reads_a_variant_given_as_a_number() -> None:
    namespace: dict = {"In": ["", "# Parameters\nvariant = 0"]}
    exec('profile: str = "demo"\nvariant: str = "random"\nvariant = 0', namespace)
    assert check_parameters(namespace)["variant"] == "0"
    assert namespace["variant"] == "0"


def test_a_missing_profile_names_those_that_exist() -> None:
    with pytest.raises(ParameterError, match="there are: camus, camus-full, camus-full-cris, demo, smoke"):
        read_profile(ROOT / "notebooks" / "profiles" / "large.yaml")


def _full(name: str) -> dict:
    return read_profile(ROOT / "notebooks" / "profiles" / f"{name}.yaml")


def test_the_full_study_has_the_papers_settings() -> None:
    """Section 3 of the paper and its released configurations, as they stand with the published numbers."""
    both = {"weight_decay": 1e-3, "dice_weight": 1.0, "ce_weight": 0.25, "mixed_precision": "fp16"}
    both |= {"schedule": "plateau", "plateau_factor": 0.1, "plateau_patience": 5, "patience": 20}
    both |= {"epochs": 1000, "scale": "full", "cohort_split": "paper", "evaluate_on": "test", "variants": 5}
    both |= {"augment": False, "score_size": 512, "variant": "random", "missing": "error"}
    paper = {"camus-full": (352, 2e-3, 128), "camus-full-cris": (416, 2e-5, 32)}
    for name, (size, rate, masks) in paper.items():
        profile = _full(name)
        assert {key: profile[key] for key in both} == both
        assert (profile["image_size"], profile["learning_rate"]) == (size, rate)
        assert abs(3 * profile["batch_size"] - masks) <= 1  # three masks an image


def test_the_profiles_of_the_full_study_differ_in_the_model_alone() -> None:
    first, second = _full("camus-full"), _full("camus-full-cris")
    differ = {name for name in first | second if first.get(name) != second.get(name)}
    assert differ == {"profile", "model", "weights", "image_size", "batch_size", "learning_rate"}


def test_the_grid_of_the_full_study_is_the_papers() -> None:
    from echovlsm.study.grid import read_grid

    grid = read_grid(ROOT / _full("camus-full")["grid"])
    assert _full("camus-full-cris")["grid"] == _full("camus-full")["grid"]
    for name, values in (("clipseg", _full("camus-full")), ("cris", _full("camus-full-cris"))):
        assert grid.models[name] == {key: values[key] for key in grid.models[name]}
        cells = [cell for cell in grid.cells if cell.model == name]
        assert {cell.prompt for cell in cells} == {f"P{level}" for level in range(8)}
        assert {cell.encoders for cell in cells} == {"unfrozen", "frozen"}
        assert {c.strategy for c in cells} == {"zeroshot", "synthetic", "real", "synth-PT:real-FT"}
        assert 42 in {cell.seed for cell in cells}


def test_fp16_is_refused_without_a_gpu_and_says_what_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate would train in float32 and say nothing."""
    from accelerate import PartialState

    PartialState()
    for kind, refused in (("cpu", True), ("cuda", False)):
        monkeypatch.setitem(PartialState._shared_state, "device", torch.device(kind))
        for precision in ("no", "bf16", "fp16"):
            if refused and precision == "fp16":
                with pytest.raises(RunError, match=r"mixed_precision: fp16 needs a GPU.*choose bf16.*or no"):
                    check_precision(precision)
            else:
                check_precision(precision)


def test_shared_parameters_have_the_same_default_everywhere() -> None:
    seen: dict[str, object] = {}
    for notebook in NOTEBOOKS:
        for name, value in notebook_defaults(notebook).items():
            if name in {"run", "missing"}:
                continue
            assert seen.setdefault(name, value) == value, f"{name} in {notebook.name}"


def test_a_run_is_done_once_and_knows_how_it_was_made(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.start({"scale": "smoke", "seed": 1, "threads": 1}, data_hash="abc")
    assert not run.complete
    assert run.start({"scale": "smoke", "seed": 1, "threads": 1}, data_hash="abc")  # interrupted: goes on
    run.finish(dice=0.5)
    assert not run.start({"scale": "smoke", "seed": 1, "threads": 2}, data_hash="abc")  # threads do not count
    record = run.record
    assert (record["scale"], record["data_hash"], record["dice"]) == ("smoke", "abc", 0.5)
    assert {"commit", "date", "device", "packages", "code_hash"} <= set(record)
    assert record["packages"]["torch"].startswith("2.")


def test_a_run_of_other_settings_is_refused_or_made_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.start({"seed": 1}, data_hash="abc")
    run.write_table("history.csv", pd.DataFrame({"epoch": [1]}))
    (run / "state").mkdir()
    (run / "04_training.failed.ipynb").write_text("{}")
    run.finish()
    with pytest.raises(RunError, match="seed: 1 there, 2 now"):
        run.start({"seed": 2}, data_hash="abc")
    with pytest.raises(RunError, match="data_hash"):
        run.start({"seed": 1}, data_hash="abd")
    assert (run / "history.csv").is_file()
    assert run.start({"seed": 2}, data_hash="abc", redo=True)
    assert not (run / "history.csv").exists()
    assert not (run / "state").exists()
    assert (run / "04_training.failed.ipynb").exists()


def test_state_without_a_record_is_not_resumed(tmp_path: Path) -> None:
    """Whoever deletes run.yaml must not get the old weights under new parameters."""
    run = RunFolder(tmp_path / "run")
    run.start({"seed": 1})
    (run / "state").mkdir()
    (run / "notes.txt").write_text("mine")
    (run / "run.yaml").unlink()
    assert run.start({"seed": 2})
    assert not (run / "state").exists()
    assert (run / "notes.txt").read_text() == "mine"


def test_a_run_of_other_settings_is_not_scored_as_this_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.start({"prompt": "P3", "seed": 1})
    run.write_table("history.csv", pd.DataFrame({"epoch": [1]}))
    run.finish()
    assert run.require("history.csv", "04_training", {"prompt": "P3"})["status"] == "complete"
    with pytest.raises(RunError, match=r"made with .'prompt': 'P3'.;"):
        run.require("history.csv", "04_training", {"prompt": "P1", "seed": 1})


def test_a_second_way_of_scoring_keeps_files_of_its_own(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.start({"seed": 1})
    first = {"cohort": "data/cohorts/a", "evaluate_on": "test", "score_size": 512}
    assert run.evaluation_suffix(first) == ""
    run.note(evaluation={"parameters": first})
    assert run.evaluation_suffix(first) == ""
    assert run.evaluation_suffix(first | {"score_size": 0}) == "-a-test-0"


def test_a_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.write_table("scores.parquet", pd.DataFrame({"dice": [1.0]}))

    def breaks(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", breaks)
    with pytest.raises(OSError, match="disk full"):
        run.write_table("scores.parquet", pd.DataFrame({"dice": [0.0]}))
    monkeypatch.undo()
    assert pd.read_parquet(run / "scores.parquet")["dice"].tolist() == [1.0]


def test_asking_for_a_run_that_is_not_there_names_the_notebook(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run notebooks/04_training"):
        RunFolder(tmp_path / "none").require("weights", "04_training")


def test_paths_count_from_the_project_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECHOVLSM_ROOT", raising=False)
    monkeypatch.chdir(ROOT / "notebooks")
    assert project_root() == ROOT
    assert resolve("data") == ROOT / "data"
    assert resolve(tmp_path) == tmp_path
    path = run_path("demo", "/somewhere/camus", "clipseg", "P1", "synth-PT:real-FT", "frozen", 3)
    assert path == ROOT / "runs" / "demo" / "camus" / "clipseg-P1-synth-PT_real-FT-frozen-seed3"


def test_a_weights_hash_follows_content_not_place(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"1" if name != "c" else b"2")
    first, second, other = (weights_hash(tmp_path / name) for name in ("a", "b", "c"))
    assert first == second != other
    assert weights_hash("CIDAS/clipseg-rd64-refined") == "hub:CIDAS/clipseg-rd64-refined"

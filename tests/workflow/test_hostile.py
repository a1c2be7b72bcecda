"""Files and values that want to run code, leave their folder or write markup: none of them gets its way.

Wherever a payload is used, a first test shows that it works where nobody is careful.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book.tools import build as book
from book.tools.freshness import BookError, page_facts
from book.tools.tables import recorded_scores
from echovlsm import models
from echovlsm.base import cache
from echovlsm.base.files import plain
from echovlsm.base.run_folder import RunError, RunFolder
from echovlsm.cohort.files import CohortError
from echovlsm.cohort.images import load_image
from echovlsm.cohort.read import read_cohort
from echovlsm.models.common import ModelError
from echovlsm.models.cris import CRIS
from echovlsm.prompts.vqa import ShapeError, load_vqa
from echovlsm.published.claims import find_runs
from echovlsm.published.scores import PublishedError, load_scores
from echovlsm.study.answers import read_record
from echovlsm.study.execution import execute
from echovlsm.study.grid.cells import GridError, read_grid
from echovlsm.study.parameters import ParameterError, notebook_defaults, read_profile
from echovlsm.synthesis.unet import SemanticUNetConfig
from echovlsm.synthesis.weights import WeightsError, load_checkpoint, load_denoiser
from echovlsm.training.loop import fit
from echovlsm.training.triplets import make_triplets
from tests.book.test_book import executed_notebook, project_files
from tests.conftest import ROOT, WEIGHTS, call
from tests.models.test_cris import SMALL

PACKAGE = sorted((ROOT / "echovlsm").rglob("*.py"))
SCRIPT = "<script>alert(1)</script>"
HANDLER = "<img src=x onerror=alert(1)>"


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.target,)


@pytest.fixture
def exploded(tmp_path: Path) -> Path:
    """The file that a payload would make."""
    return tmp_path / "exploded"


# --- pickles ---------------------------------------------------------------------------------------------


def plain_pickle(file: Path, exploded: Path) -> None:
    """An old checkpoint: a pickle and nothing else."""
    file.write_bytes(pickle.dumps({"state_dict": {"weight": Bomb(exploded)}}, protocol=2))


def torch_archive(file: Path, exploded: Path) -> None:
    """A checkpoint of today: a zip archive with a pickle in it."""
    torch.save({"weight": Bomb(exploded)}, file)


FORMATS = [plain_pickle, torch_archive]


def test_the_pickles_explode_where_nobody_is_careful(tmp_path: Path, exploded: Path) -> None:
    for write in FORMATS:
        write(tmp_path / "bomb.pt", exploded)
        with contextlib.suppress(RuntimeError):  # what comes after the explosion does not matter
            torch.load(tmp_path / "bomb.pt", weights_only=False)
        assert exploded.exists(), write.__name__
        exploded.unlink()


def cris_checkpoint(folder: Path, write: Callable[[Path], None]) -> None:
    write(folder / "cris.pth")
    CRIS.from_checkpoint(folder / "cris.pth", SMALL)


def clip_weights(folder: Path, write: Callable[[Path], None]) -> None:
    write(folder / "RN50.pt")
    CRIS.from_clip(folder / "RN50.pt", SMALL)


def cris_folder(folder: Path, write: Callable[[Path], None]) -> None:
    shutil.copytree(WEIGHTS.with_name("cris-tiny"), folder / "cris")
    (folder / "cris" / "model.safetensors").unlink()
    write(folder / "cris" / "pytorch_model.bin")
    models.load("cris", folder / "cris")


def cris_safetensors(folder: Path, write: Callable[[Path], None]) -> None:
    shutil.copytree(WEIGHTS.with_name("cris-tiny"), folder / "cris")
    write(folder / "cris" / "model.safetensors")
    models.load("cris", folder / "cris")


def clipseg_folder(folder: Path, write: Callable[[Path], None]) -> None:
    shutil.copytree(WEIGHTS, folder / "clipseg")
    (folder / "clipseg" / "model.safetensors").unlink()
    write(folder / "clipseg" / "pytorch_model.bin")
    models.load("clipseg", folder / "clipseg")


def clipseg_safetensors(folder: Path, write: Callable[[Path], None]) -> None:
    shutil.copytree(WEIGHTS, folder / "clipseg")
    write(folder / "clipseg" / "model.safetensors")
    models.load("clipseg", folder / "clipseg")


def reference_safetensors(folder: Path, write: Callable[[Path], None]) -> None:
    from echovlsm.models.unet import ReferenceUNet

    ReferenceUNet.fresh(32, channels=(4, 8)).save_pretrained(folder / "unet")
    write(folder / "unet" / "model.safetensors")
    models.load("unet", folder / "unet")


def denoiser_checkpoint(folder: Path, write: Callable[[Path], None]) -> None:
    write(folder / "ema.pt")
    load_checkpoint(folder / "ema.pt", SemanticUNetConfig())


def denoiser_safetensors(folder: Path, write: Callable[[Path], None]) -> None:
    shutil.copytree(WEIGHTS.with_name("sdm-tiny"), folder / "sdm")
    write(folder / "sdm" / "model.safetensors")
    load_denoiser(folder / "sdm")


LOADERS = [
    *(cris_checkpoint, clip_weights, cris_folder, cris_safetensors, clipseg_folder, clipseg_safetensors),
    *(reference_safetensors, denoiser_checkpoint, denoiser_safetensors),
]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)
def test_a_checkpoint_that_runs_code_is_refused(
    load: Callable, write: Callable, tmp_path: Path, exploded: Path
) -> None:
    with pytest.raises((ModelError, WeightsError), match=r"[Gg]ive|[Cc]opy|[Ff]etch"):
        load(tmp_path, lambda file: write(file, exploded))
    assert not exploded.exists()


@pytest.fixture(scope="module")
def trained(phantom_frames: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory):
    """Triplets, settings, and the state of a training that was interrupted after its first epoch."""
    model = models.load("clipseg", WEIGHTS, "frozen")
    pair = [
        make_triplets(phantom_frames[phantom_frames["split"] == split], "P1", model)
        for split in ("val", "test")
    ]
    folder = tmp_path_factory.mktemp("state")
    options = {"batch_size": 8, "learning_rate": 1e-3, "seed": 1, "progress": False}
    fit(model, *pair, folder, epochs=1, **options)
    return pair, folder, options


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "pytorch_model.bin"])
def test_a_training_state_that_runs_code_does_not_run_it(
    trained, name: str, tmp_path: Path, exploded: Path
) -> None:
    pair, folder, options = trained
    state = Path(shutil.copytree(folder, tmp_path / "state"))
    (checkpoint,) = state.glob("checkpoint-*")
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    torch_archive(checkpoint / name, exploded)
    model = models.load("clipseg", WEIGHTS, "frozen")
    if name == "random_states_0.pkl":  # a training without its random numbers goes on with others
        fit(model, *pair, state, epochs=2, **options)
    else:
        with pytest.raises(pickle.UnpicklingError):
            fit(model, *pair, state, epochs=2, **options)
    assert not exploded.exists()


def test_a_pretraining_state_that_runs_code_is_refused(tmp_path: Path, exploded: Path) -> None:
    from data.weights.make.models import pretrain

    torch_archive(tmp_path / "checkpoint.pt", exploded)
    with pytest.raises(pickle.UnpicklingError):
        pretrain(models.load("clipseg", WEIGHTS), tmp_path, steps=1, batch=1, rate=1e-3, seed=0)
    assert not exploded.exists()


def test_arrays_that_run_code_are_not_read(
    tmp_path: Path, exploded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    bomb = np.array([Bomb(exploded)], dtype=object)
    (tmp_path / "cache" / "shapes-0").mkdir(parents=True)
    np.save(tmp_path / "cache" / "shapes-0" / "shapes.npy", bomb, allow_pickle=True)
    made = cache.arrays("shapes", "0", lambda: {"shapes": np.arange(3)})
    assert made["shapes"].tolist() == [0, 1, 2]
    assert not exploded.exists()

    from echovlsm.synthesis import sampling

    np.savez(sampling._batch_file(tmp_path, 0), images=bomb, maps=bomb, redraws=bomb, seconds=bomb)
    with pytest.raises(ValueError, match="allow_pickle"):
        sampling._seconds(tmp_path)
    assert not exploded.exists()


# --- code beside the weights -----------------------------------------------------------------------------


def test_code_that_comes_with_weights_is_not_run(tmp_path: Path, exploded: Path) -> None:
    evil = f"import pathlib\npathlib.Path({str(exploded)!r}).touch()\nclass Evil: pass\n"
    folder = Path(shutil.copytree(WEIGHTS, tmp_path / "clipseg"))
    (folder / "evil.py").write_text(evil)
    file = folder / "tokenizer_config.json"
    auto = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    named = json.loads(file.read_text()) | {"auto_map": auto, "tokenizer_class": "Evil"}
    file.write_text(json.dumps(named))
    with contextlib.suppress(ModelError):  # refused, or read with Transformers' own class
        models.load("clipseg", folder)
    assert not exploded.exists()

    answering = tmp_path / "vqa"
    answering.mkdir()
    (answering / "evil.py").write_text(evil)
    config = {"model_type": "evil", "architectures": ["EvilForQuestionAnswering"]}
    config |= {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (answering / "config.json").write_text(json.dumps(config))
    with pytest.raises(ShapeError, match=r"vqa cannot be loaded .*take backend='geometry'"):
        load_vqa(answering)
    assert not exploded.exists()


# --- archives and links ----------------------------------------------------------------------------------


def member(kind: str, outside: Path) -> tarfile.TarInfo:
    """A member of an archive that wants to leave its folder."""
    names = {"absolute": str(outside), "parent": f"../../{outside.name}"}
    info = tarfile.TarInfo(names.get(kind, "scores_per_image.csv"))
    types = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
    info.type = types.get(kind, tarfile.REGTYPE)
    info.linkname = str(outside) if kind in ("symlink", "hardlink") else ""
    return info


@pytest.mark.parametrize("kind", ["absolute", "parent", "symlink", "hardlink", "device"])
def test_an_archive_in_the_scores_place_is_refused_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    inside, outside = tmp_path / "a" / "b", tmp_path / "outside"
    inside.mkdir(parents=True)
    info, text = member(kind, outside), b"dice,iou\n0.5,0.4\n"
    info.size = len(text) if info.isreg() else 0
    with tarfile.open(inside / "scores.tar", "w") as archive:
        archive.addfile(info, io.BytesIO(text) if info.isreg() else None)
    if info.isreg():
        with zipfile.ZipFile(inside / "scores.zip", "w") as archive:
            archive.writestr(info.name, text)
    before = sorted(tmp_path.rglob("*"))
    for file in inside.iterdir():
        with pytest.raises(PublishedError, match=rf"{file.name} (has no column|is not a table)"):
            load_scores(file)
    assert sorted(tmp_path.rglob("*")) == before
    assert not outside.exists()


def test_a_checkpoint_archive_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "cris.pth", "w") as archive:
        archive.writestr("../escaped", b"x")
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match=r"cris\.pth cannot be read"):
        CRIS.from_checkpoint(tmp_path / "cris.pth", SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["cris.pth"]


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.raw", "link.raw", "LIST", "%03d.raw 0 9 1"])
def test_a_metaimage_reads_no_file_of_another_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "patient0001"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(48))
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    header = "ObjectType = Image\nNDims = 2\nDimSize = 6 8\nElementType = MET_UCHAR\nElementDataFile = "
    (folder / "patient0001_2CH_ED.mhd").write_text(header + name + "\n")
    with pytest.raises(CohortError, match="refused"):
        load_image({"image": str(folder / "patient0001_2CH_ED.mhd")})


# --- what the package never does -------------------------------------------------------------------------


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file, with the dotted name of what is called."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
    return found


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_has_a_way_to_run_what_it_reads(path: Path) -> None:
    """No unpickling, no evaluation, no shell, no unpacking, no code of others, no YAML that makes objects."""
    tree = ast.parse(path.read_text())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
    assert not imported & {"tarfile", "zipfile"}, "whatever unpacks must refuse members that leave the folder"
    for name, found in calls(path):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in found.keywords}
        last = name.rsplit(".", 1)[-1]
        assert name not in ("eval", "exec", "compile", "os.system", "os.popen", "pd.read_pickle"), name
        assert last not in ("unpack_archive", "Untar", "Unzip", "extractall", "unsafe_load", "full_load")
        assert name not in ("yaml.load", "yaml.load_all", "torch.jit.load", "torch.hub.load"), name
        assert options.get("shell", "False") == "False", name
        assert options.get("allow_pickle", "False") == "False", name
        assert options.get("trust_remote_code", "False") == "False", name
        if name == "torch.load":
            assert options.get("weights_only") == "True", f"line {found.lineno}"


# --- parameters ------------------------------------------------------------------------------------------


def payloads(exploded: Path) -> list[str]:
    """Texts that become code where text is pasted into a program, a shell or a format."""
    touch = f"__import__('pathlib').Path({str(exploded)!r}).touch()"
    return [
        touch,
        f'"; {touch}; "',
        f"'; {touch} #",
        f'\\"; {touch} #',
        f"\n{touch}\n",
        f'"""\n{touch}\n"""',
        f"{{{touch}}}",
        f"$(touch {exploded})",
        f"`touch {exploded}`",
        f"'; touch {exploded}; '",
        "{0.__class__.__mro__}",
        "\u2028" + touch,
    ]


@pytest.fixture
def little_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one notebook that shows its parameters."""
    root = tmp_path / "project"
    (root / "notebooks" / "profiles").mkdir(parents=True)
    (root / "_config.yml").write_text("")
    (root / "requirements.lock").write_text("")
    # A kernel starts in the root: an empty folder of this name would be taken for the package.
    (root / "echovlsm").symlink_to(ROOT / "echovlsm")
    names = [f"text{number}" for number in range(len(payloads(tmp_path)))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [
        new_markdown_cell("# Little"),
        new_code_cell("".join(f'{name}: str = ""\n' for name in names), metadata={"tags": ["parameters"]}),
        new_code_cell("from echovlsm.study import begin\npage = begin(globals(), 'little')"),
        new_code_cell(f"import json\nprint(json.dumps([{', '.join(names)}]))"),
    ]
    nbformat.write(notebook, root / "notebooks" / "little.ipynb")
    monkeypatch.setenv("ECHOVLSM_ROOT", str(root))
    return root


def test_a_parameter_that_looks_like_code_arrives_as_the_text_it_is(
    little_project: Path, exploded: Path
) -> None:
    texts = payloads(exploded)
    given = {f"text{number}": text for number, text in enumerate(texts)}
    out = little_project / "runs" / "little.ipynb"
    execute(little_project / "notebooks" / "little.ipynb", out, given, progress=False)
    shown = nbformat.read(out, as_version=4).cells[-1].outputs[0].text
    assert json.loads(shown) == texts
    assert not exploded.exists()


def test_a_command_lines_value_is_text_or_a_number_and_nothing_else(
    little_project: Path, exploded: Path
) -> None:
    notebook, out = little_project / "notebooks" / "little.ipynb", little_project / "runs" / "little.ipynb"
    for value in (f'!!python/object/apply:os.system ["touch {exploded}"]', "[1, 2", "{a: 1}"):
        assert call("execute", notebook, out, "--no-progress", "-p", "text0", value).exit_code == 0
        assert json.loads(nbformat.read(out, as_version=4).cells[-1].outputs[0].text)[0] == value
    out.parent.rename(out.parent.with_name("read"))
    refused = call("execute", notebook, out, "-p", "text0; import os", "x")
    assert refused.exit_code == 2
    assert "unknown parameter `text0; import os`" in refused.output
    assert not exploded.exists()
    assert not out.parent.exists()


def test_a_notebooks_default_is_read_and_not_evaluated(tmp_path: Path, exploded: Path) -> None:
    code = f"text: str = __import__('pathlib').Path({str(exploded)!r}).touch()"
    notebook = new_notebook(cells=[new_code_cell(code, metadata={"tags": ["parameters"]})])
    nbformat.write(notebook, tmp_path / "evil.ipynb")
    with pytest.raises(ValueError, match="malformed node"):
        notebook_defaults(tmp_path / "evil.ipynb")
    assert not exploded.exists()


def test_a_parameter_given_to_snakemake_is_one_word_of_its_command(tmp_path: Path, exploded: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    for name in ("Snakefile", "_config.yml", "_toc.yml", "requirements.lock", "CITATION.cff"):
        shutil.copy(ROOT / name, root / name)
    for name in ("profiles", "notebooks"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("echovlsm", "book", "cluster", "data"):
        (root / name).symlink_to(ROOT / name)
    value = f"x'; touch {exploded}; echo '$(touch {exploded}) {{config}} `touch {exploded}`"
    command = [sys.executable, "-m", "snakemake", "-n", "-p", "--cores", "1"]
    command += ["runs/smoke/07_published/07_published.ipynb", "--config", "scale=smoke", f"camus={value}"]
    environment = os.environ | {"ECHOVLSM_ROOT": str(root)}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in (done.stdout + done.stderr).splitlines() if "-m echovlsm execute" in line)
    words = shlex.split(line)
    assert words[words.index("camus") + 1] == value
    assert not exploded.exists()


# --- YAML ------------------------------------------------------------------------------------------------


@pytest.fixture
def tagged(exploded: Path) -> str:
    """A YAML file that asks for a command to be run."""
    return f'name: x\nkind: real\nbomb: !!python/object/apply:os.system ["touch {exploded}"]\n'


def test_the_yaml_explodes_where_nobody_is_careful(tagged: str, exploded: Path) -> None:
    yaml.unsafe_load(tagged)
    assert exploded.exists()


def run_record(folder: Path, text: str) -> None:
    (folder / "run.yaml").write_text(text)
    RunFolder(folder).start({"seed": 1})


def cohort_record(folder: Path, text: str) -> None:
    for name in ("database_nifti", "database_split"):
        (folder / name).mkdir()
    for name in ("training", "validation", "testing"):
        (folder / "database_split" / f"subgroup_{name}.txt").write_text("")
    (folder / "cohort.yaml").write_text(text)
    read_cohort(folder)


def profile(folder: Path, text: str) -> None:
    (folder / "mine.yaml").write_text(text)
    read_profile(folder / "mine.yaml")


def grid(folder: Path, text: str) -> None:
    (folder / "grid.yaml").write_text(text)
    read_grid(folder / "grid.yaml")


def book_result(folder: Path, text: str) -> None:
    (folder / "data" / "results" / "mine").mkdir(parents=True)
    (folder / "data" / "results" / "mine" / "run.yaml").write_text(text)
    recorded_scores(folder)


def published_result(folder: Path, text: str) -> None:
    (folder / "run.yaml").write_text(text)
    pd.DataFrame({"dice": [0.5]}).to_parquet(folder / "scores.parquet")
    find_runs(folder)


def hearts_result(folder: Path, text: str) -> None:
    (folder / "run.yaml").write_text(text)
    read_record(folder)


def executed_run(folder: Path, text: str) -> None:
    nbformat.write(executed_notebook("About"), folder / "01_cohort.ipynb")
    (folder / "run.yaml").write_text(text)
    page_facts(folder, "notebooks/01_cohort", folder / "01_cohort.ipynb", "demo")


READERS = [
    *((run_record, RunError), (cohort_record, CohortError), (profile, ParameterError), (grid, GridError)),
    *((book_result, BookError), (published_result, PublishedError), (hearts_result, ValueError)),
    (executed_run, BookError),
]


@pytest.mark.parametrize(("read", "error"), READERS, ids=[read.__name__ for read, _ in READERS])
def test_yaml_that_asks_for_an_object_is_refused(
    read: Callable[[Path, str], None], error: type[Exception], tagged: str, tmp_path: Path, exploded: Path
) -> None:
    folder = tmp_path / "read"
    folder.mkdir()
    with pytest.raises(error, match=r"\.yaml: not readable as YAML \(ConstructorError"):
        read(folder, tagged)
    assert not exploded.exists()


# --- pages -----------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The elements of a page that could do something, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.programs: list[str] = []
        self.handlers: list[str] = []
        self.words = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        values = dict(attrs)
        if tag == "script" and values.get("type") == "application/json":
            self._inside = "data"
        self.handlers += [f"{name}={value}" for name, value in attrs if name.startswith("on")]
        self.handlers += [v for v in values.values() if v and v.strip().lower().startswith("javascript:")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.programs.append(data)
        elif self._inside != "data":
            self.words += data


def explorer_page(sentence: str) -> str:
    from echovlsm.explorer import static as explorer_static

    image = {"title": sentence, "pixels": "", "labels": "", "sentences": [[sentence]], "maps": []}
    payload = {"note": sentence, "structures": [], "nets": [sentence], "levels": [sentence]}
    payload["stills"] = [{"title": sentence, "image": "", "text": sentence}]
    return explorer_static.page(payload | {"images": [image]})


def test_the_explorers_page_holds_sentences_as_data() -> None:
    text = explorer_page(SCRIPT + HANDLER)
    found = Elements(text)
    assert found.programs == []
    assert found.handlers == []
    assert SCRIPT in found.words, "the note is shown to the letter"
    data = re.search(r'<script type="application/json">(.*?)</script>', text)
    assert json.loads(data.group(1))["images"][0]["sentences"] == [[SCRIPT + HANDLER]]
    script = (ROOT / "book" / "_static" / "explorer.js").read_text()
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert name not in script


def test_the_live_explorer_shows_a_bad_sentence_as_text(phantom_cohort: Path, tmp_path: Path) -> None:
    from echovlsm.explorer.view import ExplorerView

    view = ExplorerView([phantom_cohort], tmp_path, weights=str(WEIGHTS))
    view.left.sentence.value = f"{HANDLER} " * 100
    assert "longer than" in view.left.score.value
    assert "<img" not in view.left.score.value
    assert Elements(view.left.score.value).handlers == []
    view.left.sentence.value = r"The $\frac{wall}$ of $the heart."
    assert view.save_figure(tmp_path / "figures").is_file()


def test_a_value_in_markdown_is_shown_to_the_letter() -> None:
    from markdown_it import MarkdownIt

    for text in (SCRIPT, "a | b", "{raw}`x`", "[x](javascript:alert(1))", "**bold**", "$x$", "a\nb", "`c`"):
        rendered = MarkdownIt("commonmark").render(f"before {plain(text)} after")
        found = Elements(rendered)
        assert re.sub(r"\s", " ", found.words.strip()) == f"before {text} after".replace("\n", " ")
        assert not re.search(r"<(?!/?p>)", rendered), rendered


def test_a_book_shows_prompts_and_records_escaped(tmp_path: Path) -> None:
    """A prompt in a parameter, an output and the explorer; a run's record that was tampered with."""
    root = project_files(tmp_path / "project")
    executed = {}
    for page in book.notebook_pages(root):
        name = Path(page).name
        executed[page] = root / "runs" / "demo" / name / f"{name}.ipynb"
        executed[page].parent.mkdir(parents=True)
        nbformat.write(executed_notebook(f"About {name}"), executed[page])
    page, path = next(iter(executed.items()))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source = f"# Parameters\nprompt = {SCRIPT + HANDLER!r}"
    notebook.cells[3].outputs += [
        new_output("stream", name="stdout", text=f"prompt: {SCRIPT}{HANDLER}\n"),
        new_output("execute_result", {"text/plain": repr(SCRIPT + HANDLER)}, execution_count=1),
        new_output("display_data", {"text/html": explorer_page(SCRIPT + HANDLER), "text/plain": ""}),
    ]
    notebook.cells[3].outputs[2].metadata["image/png"] = {"alt": f'a"b {SCRIPT}{HANDLER}'}
    notebook.metadata["papermill"]["parameters"] |= {"cohort": f"data/{HANDLER}"}
    nbformat.write(notebook, path)
    record = {"device": SCRIPT + HANDLER, "packages": {HANDLER: SCRIPT}, "scale": "demo", "cohort": SCRIPT}
    (path.parent / "run.yaml").write_text(yaml.safe_dump(record))

    index = book.build("demo", executed, root / "_build", root=root)

    html = (index.parent / f"{page}.html").read_text()
    found = Elements(html)
    assert found.words.count(SCRIPT) >= 3
    assert found.words.count(HANDLER) >= 3
    for built in index.parent.rglob("*.html"):
        elements = Elements(built.read_text())
        assert not [program for program in elements.programs if "alert(1)" in program], built.name
        assert not [handler for handler in elements.handlers if "alert(1)" in handler], built.name

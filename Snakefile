"""The study in order. `snakemake --cores 2 book` runs the notebooks at demo scale and builds the book.

    snakemake --cores 2 study --config scale=smoke
    snakemake --cores 2 study --config profile=camus cohort=/path/to/CAMUS_public
    snakemake --cores 2 study --config prompt=P3 seed=1      # any notebook parameter
    snakemake --cores 2 grid --config scale=demo prompts=P0,P1,P3   # a part of the grid; -n tells what it would cost
    snakemake grid --executor slurm --jobs 8                  # on a cluster, one GPU a cell

Each rule executes one notebook with Papermill into its run folder. A complete run is kept, an interrupted one
resumes. An unknown or mistyped parameter stops everything before the first cell.

`grid` runs models x prompts x strategies x encoders x seeds of notebooks/grids/<profile>.yaml; the axes can be
given as models=, prompts=, strategies=, encoder_modes= and seeds=. A cell that dies takes no other with it
(profiles/default says keep-going); the same command then runs what is missing.
"""

import os
import shlex
import sys

from echovlsm.base import paths, rooms
from echovlsm.cohort import is_released
from echovlsm.study import grid as study_grid
from echovlsm.study import parameters, warm

ROOT = Path(workflow.basedir)
NOTEBOOKS = tuple(rooms.CHAPTERS)
SOURCES = {name: f"notebooks/{name}.ipynb" for name in NOTEBOOKS}
DECLARED = {name: parameters.notebook_parameters(ROOT / source) for name, source in SOURCES.items()}
ALL_DECLARED = {k: v for declared in DECLARED.values() for k, v in declared.items()}
TYPED = parameters.as_typed(config, sys.argv, ALL_DECLARED)
PROFILE = str(TYPED.get("profile", TYPED.get("scale", "demo")))
PROFILE_FILE = f"notebooks/profiles/{PROFILE}.yaml"
CHANGES = {key: value for key, value in TYPED.items() if key not in {"profile", "scale"}}
CHANGES = parameters.coerce(CHANGES, ALL_DECLARED)
parameters.check_values(CHANGES, ALL_DECLARED, "--config")
if "run" in CHANGES:
    raise parameters.ParameterError("--config: `run` names one notebook's folder; use papermill or echovlsm execute")
VALUES = {**parameters.notebook_defaults(ROOT / SOURCES["04_training"]), **parameters.read_profile(ROOT / PROFILE_FILE), **CHANGES}
if "profile" in TYPED and "scale" in TYPED:
    CHANGES["scale"] = TYPED["scale"]

COHORT = Path(VALUES["cohort"]).name
GRID_FILE = str(VALUES.get("grid", f"notebooks/grids/{PROFILE}.yaml"))
GRID_FOLDER = f"runs/{PROFILE}/{COHORT}/grid"
AXES = {key: CHANGES[key] for key in study_grid.AXES if CHANGES.get(key)}
GRID = study_grid.read_grid(GRID_FILE, AXES)
CELLS = {cell.name: cell for cell in GRID.cells}
CELL = paths.run_path(PROFILE, *(VALUES[k] for k in ("cohort", "model", "prompt", "strategy", "encoders", "seed")))
CELL = CELL.relative_to(ROOT)
EXECUTED = {
    "01_cohort": f"runs/{PROFILE}/{COHORT}/01_cohort/01_cohort.ipynb",
    "02_synthesis": f"runs/{PROFILE}/{COHORT}/02_synthesis/02_synthesis.ipynb",
    "03_prompts": f"runs/{PROFILE}/{COHORT}/03_prompts/03_prompts.ipynb",
    "04_training": f"{CELL}/04_training.ipynb",
    "05_evaluation": f"{CELL}/05_evaluation.ipynb",
    "06_results": f"runs/{PROFILE}/06_results/06_results.ipynb",
    "07_published": f"runs/{PROFILE}/07_published/07_published.ipynb",
    "12_released_code": f"runs/{PROFILE}/12_released_code/12_released_code.ipynb",
    "08_explorer": f"runs/{PROFILE}/{COHORT}/08_explorer/08_explorer.ipynb",
    "09_real_hearts": f"runs/{PROFILE}/09_real_hearts/09_real_hearts.ipynb",
    "10_benchmarks": f"runs/{PROFILE}/10_benchmarks/10_benchmarks.ipynb",
    "11_phantom": f"runs/{PROFILE}/11_phantom/11_phantom.ipynb",
}


def code(*notebooks):
    """What the code of these notebooks consists of: the rooms that they rest on. Another room's change is not theirs."""
    found = {str(path.relative_to(ROOT)) for name in notebooks for path in rooms.modules_of(name, ROOT / "echovlsm")}
    return ["requirements.lock", *sorted(found)]


# Results on record that chapters read, and those that only the page for maintainers shows.
ON_RECORD = [p for p in sorted(Path("data/results").rglob("*")) if p.is_file()]
RELIABILITY = [str(p) for p in ON_RECORD if "reliability" in p.parts]
PHANTOM = [str(p) for p in ON_RECORD if "phantom" in p.parts]
TRIED = [str(p) for p in ON_RECORD if "explorer" in p.parts]
RECORDED = [str(p) for p in ON_RECORD if not {"reliability", "phantom", "explorer"} & set(p.parts)]


def files_of(folder):
    """The files of a weights folder; a hub id has none here."""
    return [str(p) for p in sorted(paths.resolve(folder).glob("*")) if p.is_file()]


WEIGHTS = files_of(VALUES["weights"])


def released(folder):
    """Whether others drew and released this synthetic cohort; notebook 02 draws those that have a cohort.yaml."""
    folder = paths.resolve(folder.strip())
    if not folder.is_dir() or (folder / "cohort.yaml").is_file():
        return False
    return is_released(folder)


# Nearly all waits for the cohort, so that two processes draw its images, unless the command line says otherwise.
DRAWERS = CHANGES.get("threads", max(VALUES["threads"], 2))
DRAWN = not all(map(released, VALUES["synthetic"].split(",")))
SDM = {**parameters.notebook_defaults(ROOT / SOURCES["02_synthesis"]), **VALUES}["sdm"]


def execution(name, out, changes, *options):
    """The command that executes one notebook with the profile's parameters and these changes."""
    words = [sys.executable, "-m", "echovlsm", "execute", SOURCES[name], out, "-f", PROFILE_FILE, *options]
    for key, value in changes.items():
        if key in DECLARED[name]:
            words += ["-p", key, str(value)]
    return " ".join(shlex.quote(str(word)) for word in words)


def command(name, **more):
    """The command that executes a notebook with the command line's parameters.

    Snakemake formats it: braces of a value are doubled to come out as they are.
    """
    return execution(name, EXECUTED[name], {**more, **CHANGES}).replace("{", "{{").replace("}", "}}")


# What tells cells apart is the grid's; all other parameters of the command line hold for every cell.
SHARED = {key: value for key, value in CHANGES.items() if key not in {*study_grid.AXES.values(), "weights", "run"}}


def cell_command(wildcards):
    """The commands that execute a cell's notebooks, one after the other, without what only shows something."""
    cell = CELLS[wildcards.cell]
    values = {**GRID.parameters_of(cell, GRID_FOLDER), **SHARED}
    outs = {name: f"{GRID_FOLDER}/{cell.name}/{name}.ipynb" for name in cell.notebooks}
    return " && ".join(execution(name, out, values, "--no-look") for name, out in outs.items())


def cell_inputs(wildcards):
    """What a cell starts from: weights, cohorts, and the synthetic run of a finetuning."""
    cell = CELLS[wildcards.cell]
    found = files_of(weights) if (weights := GRID.models[cell.model]["weights"]) else []
    if cell.strategy not in ("zeroshot", "real") and DRAWN:
        found.append(EXECUTED["02_synthesis"])
    if cell.pretraining is not None and cell.pretraining.name in CELLS:
        found.append(f"{GRID_FOLDER}/{cell.pretraining.name}/05_evaluation.ipynb")
    return found


if {"-n", "--dry-run", "--dryrun"} & set(sys.argv):
    print(study_grid.cost_line(study_grid.estimate(GRID, GRID_FOLDER), workflow.cores or 1), file=sys.stderr)
elif warm.SOCKET not in os.environ:
    KEPT_WARM = warm.start()  # notebooks below this process skip the imports; the name keeps it alive


wildcard_constraints:
    cell="[A-Za-z0-9_.-]+",


localrules:
    study,
    book,
    grid,


rule book:
    input:
        EXECUTED.values(),
        "_config.yml",
        "_toc.yml",
        "CITATION.cff",
        RELIABILITY,
        [str(p) for folder in ("book", "cluster") for p in Path(folder).rglob("*") if p.is_file()],
    output:
        f"_build/{PROFILE}/_build/html/index.html",
    params:
        python=shlex.quote(sys.executable),
        pages=" ".join(f"--executed {shlex.quote(f'notebooks/{name}={path}')}" for name, path in EXECUTED.items()),
        out=f"_build/{PROFILE}",
    shell:
        "{params.python} -m book.tools build --scale {PROFILE} {params.pages} --out {params.out}"


rule study:
    input:
        EXECUTED.values(),


rule grid:
    input:
        expand(f"{GRID_FOLDER}/{{cell}}/05_evaluation.ipynb", cell=CELLS),


rule cell:
    input:
        SOURCES["04_training"],
        SOURCES["05_evaluation"],
        PROFILE_FILE,
        code("04_training", "05_evaluation"),
        EXECUTED["01_cohort"],
        cell_inputs,
    output:
        f"{GRID_FOLDER}/{{cell}}/05_evaluation.ipynb",
    params:
        command=cell_command,
    threads: {**VALUES, **GRID.parameters, **SHARED}["threads"]
    resources:
        gpu=1,
    shell:
        "{params.command}"


rule cohort:
    input:
        SOURCES["01_cohort"],
        PROFILE_FILE,
        code("01_cohort"),
    output:
        EXECUTED["01_cohort"],
    threads: DRAWERS
    shell:
        command("01_cohort") + " -p threads {threads}"  # not part of the text, so that it makes nothing stale


rule synthesis:
    input:
        SOURCES["02_synthesis"],
        PROFILE_FILE,
        code("02_synthesis"),
        WEIGHTS,
        files_of(SDM),
        EXECUTED["01_cohort"],
    output:
        EXECUTED["02_synthesis"],
    priority: 1  # long, and others wait for it
    threads: VALUES["threads"]
    resources:
        gpu=1,
    shell:
        command("02_synthesis")


rule prompts:
    input:
        SOURCES["03_prompts"],
        PROFILE_FILE,
        code("03_prompts"),
        WEIGHTS,
        EXECUTED["01_cohort"],
    output:
        EXECUTED["03_prompts"],
    threads: VALUES["threads"]
    shell:
        command("03_prompts")


rule train:
    input:
        SOURCES["04_training"],
        PROFILE_FILE,
        code("04_training"),
        WEIGHTS,
        EXECUTED["01_cohort"],
        EXECUTED["02_synthesis"] if VALUES["strategy"] != "real" and DRAWN else [],
    output:
        EXECUTED["04_training"],
    priority: 1  # long, and others wait for it
    threads: VALUES["threads"]
    resources:
        gpu=1,
    shell:
        command("04_training")


rule results:
    input:
        SOURCES["06_results"],
        PROFILE_FILE,
        code("06_results"),
        rules.grid.input,
    output:
        EXECUTED["06_results"],
    shell:
        command("06_results", grid=GRID_FILE)


rule published:
    input:
        SOURCES["07_published"],
        PROFILE_FILE,
        code("07_published"),
        [str(p) for p in Path("data/published").rglob("*") if p.is_file()],
        RECORDED,
    output:
        EXECUTED["07_published"],
    shell:
        command("07_published")


rule released_code:
    input:
        SOURCES["12_released_code"],
        PROFILE_FILE,
        code("12_released_code"),
        [str(p) for p in Path("data/published").rglob("*") if p.is_file()],
    output:
        EXECUTED["12_released_code"],
    shell:
        command("12_released_code")


rule explorer:
    input:
        SOURCES["08_explorer"],
        PROFILE_FILE,
        code("08_explorer"),
        WEIGHTS,
        TRIED,
        EXECUTED["04_training"],
    output:
        EXECUTED["08_explorer"],
    threads: VALUES["threads"]
    shell:
        command("08_explorer") + ("" if "explore" in CHANGES else f" -p explore {shlex.quote(str(CELL))}")


rule hearts:
    input:
        SOURCES["09_real_hearts"],
        PROFILE_FILE,
        code("09_real_hearts"),
        RECORDED,
    output:
        EXECUTED["09_real_hearts"],
    shell:
        command("09_real_hearts")


rule benchmarks:
    input:
        SOURCES["10_benchmarks"],
        PROFILE_FILE,
        code("10_benchmarks"),
        [str(p) for p in Path("data/results").rglob("*") if p.is_file()],
        [path for name, path in EXECUTED.items() if name != "10_benchmarks"],  # it shows when they ran
    output:
        EXECUTED["10_benchmarks"],
    shell:
        command("10_benchmarks")


rule phantom:
    input:
        SOURCES["11_phantom"],
        PROFILE_FILE,
        code("11_phantom"),
        PHANTOM,
    output:
        EXECUTED["11_phantom"],
    shell:
        command("11_phantom")


rule evaluate:
    input:
        SOURCES["05_evaluation"],
        PROFILE_FILE,
        code("05_evaluation"),
        EXECUTED["04_training"],
    output:
        EXECUTED["05_evaluation"],
    threads: VALUES["threads"]
    resources:
        gpu=1,
    shell:
        command("05_evaluation")

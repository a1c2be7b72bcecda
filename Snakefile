"""The study in order. `snakemake --cores 2 book` runs the notebooks at demo scale and builds the book.

    snakemake --cores 2 study --config scale=smoke
    snakemake --cores 2 study --config profile=camus cohort=/path/to/CAMUS_public
    snakemake --cores 2 study --config prompt=P3 seed=1      # any notebook parameter
    snakemake study --executor slurm --jobs 8                 # on a cluster

Each rule executes one notebook with Papermill into its run folder. A complete run is kept, an interrupted one
resumes. An unknown or mistyped parameter stops everything before the first cell.
"""

import shlex
import sys

from echovlsm import parameters, runs

ROOT = Path(workflow.basedir)
NOTEBOOKS = (
    "01_cohort",
    "02_synthesis",
    "03_prompts",
    "04_training",
    "05_evaluation",
    "06_results",
    "07_published",
    "08_explorer",
)
SOURCES = {name: f"notebooks/{name}.ipynb" for name in NOTEBOOKS}
PROFILE = str(config.get("profile", config.get("scale", "demo")))
PROFILE_FILE = f"notebooks/profiles/{PROFILE}.yaml"
DECLARED = {name: parameters.notebook_parameters(ROOT / source) for name, source in SOURCES.items()}
CHANGES = {key: value for key, value in config.items() if key not in {"profile", "scale"}}
ALL_DECLARED = {k: v for declared in DECLARED.values() for k, v in declared.items()}
CHANGES = parameters.coerce(CHANGES, ALL_DECLARED)
parameters.check_values(CHANGES, ALL_DECLARED, "--config")
if "run" in CHANGES:
    raise parameters.ParameterError("--config: `run` names one notebook's folder; use papermill or echovlsm.execute")
VALUES = {**parameters.notebook_defaults(ROOT / SOURCES["04_training"]), **parameters.read_profile(ROOT / PROFILE_FILE), **CHANGES}
if "profile" in config and "scale" in config:
    CHANGES["scale"] = config["scale"]

COHORT = Path(VALUES["cohort"]).name
CELL = runs.run_path(PROFILE, VALUES["cohort"], *(VALUES[k] for k in ("model", "prompt")), "real", VALUES["encoders"], VALUES["seed"])
CELL = CELL.relative_to(ROOT)
EXECUTED = {
    "01_cohort": f"runs/{PROFILE}/{COHORT}/01_cohort/01_cohort.ipynb",
    "02_synthesis": f"runs/{PROFILE}/{COHORT}/02_synthesis/02_synthesis.ipynb",
    "03_prompts": f"runs/{PROFILE}/{COHORT}/03_prompts/03_prompts.ipynb",
    "04_training": f"{CELL}/04_training.ipynb",
    "05_evaluation": f"{CELL}/05_evaluation.ipynb",
    "06_results": f"runs/{PROFILE}/06_results/06_results.ipynb",
    "07_published": f"runs/{PROFILE}/07_published/07_published.ipynb",
    "08_explorer": f"runs/{PROFILE}/{COHORT}/08_explorer/08_explorer.ipynb",
}
# Not what only publishes: a change of the book's look, or of the chapter on the paper's scores, trains nothing again.
MODULES = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "echovlsm").rglob("*.py")) if p.stem not in {"book", "book_tables", "freshness", "scenes", "pretraining"}]
CHAPTER = [path for path in MODULES if Path(path).stem.startswith(("published", "claims"))]
EXPLORER = [path for path in MODULES if Path(path).stem.startswith("explorer")]
CODE = ["requirements.lock"] + [path for path in MODULES if path not in CHAPTER + EXPLORER]


def files_of(folder):
    """The files of a weights folder; a hub id has none here."""
    return [str(p) for p in sorted(runs.resolve(folder).glob("*")) if p.is_file()]


WEIGHTS = files_of(VALUES["weights"])
SDM = {**parameters.notebook_defaults(ROOT / SOURCES["02_synthesis"]), **VALUES}["sdm"]


def command(name):
    """The command that executes one notebook with the profile's and the command line's parameters."""
    words = [sys.executable, "-m", "echovlsm.execute", SOURCES[name], EXECUTED[name], "-f", PROFILE_FILE]
    for key, value in CHANGES.items():
        if key in DECLARED[name]:
            words += ["-p", key, str(value)]
    # Snakemake formats the command: braces of a value are doubled to come out as they are.
    return " ".join(shlex.quote(str(word)) for word in words).replace("{", "{{").replace("}", "}}")


localrules:
    study,
    book,


rule book:
    input:
        EXECUTED.values(),
        "_config.yml",
        "_toc.yml",
        "echovlsm/book.py",
        [str(p) for p in Path("book").rglob("*") if p.is_file()],
    output:
        f"_build/{PROFILE}/_build/html/index.html",
    params:
        python=shlex.quote(sys.executable),
        pages=" ".join(f"--executed {shlex.quote(f'notebooks/{name}={path}')}" for name, path in EXECUTED.items()),
        out=f"_build/{PROFILE}",
    shell:
        "{params.python} -m echovlsm.book build --scale {PROFILE} {params.pages} --out {params.out}"


rule study:
    input:
        EXECUTED.values(),


rule cohort:
    input:
        SOURCES["01_cohort"],
        PROFILE_FILE,
        CODE,
    output:
        EXECUTED["01_cohort"],
    threads: VALUES["threads"]
    shell:
        command("01_cohort")


rule synthesis:
    input:
        SOURCES["02_synthesis"],
        PROFILE_FILE,
        CODE,
        WEIGHTS,
        files_of(SDM),
        EXECUTED["01_cohort"],
    output:
        EXECUTED["02_synthesis"],
    threads: VALUES["threads"]
    resources:
        gpu=1,
    shell:
        command("02_synthesis")


rule prompts:
    input:
        SOURCES["03_prompts"],
        PROFILE_FILE,
        CODE,
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
        CODE,
        WEIGHTS,
        EXECUTED["01_cohort"],
    output:
        EXECUTED["04_training"],
    threads: VALUES["threads"]
    resources:
        gpu=1,
    shell:
        command("04_training")


rule results:
    input:
        SOURCES["06_results"],
        PROFILE_FILE,
        CODE,
        [str(p) for p in Path("data/results").rglob("*") if p.is_file()],
    output:
        EXECUTED["06_results"],
    shell:
        command("06_results")


rule published:
    input:
        SOURCES["07_published"],
        PROFILE_FILE,
        CODE,
        CHAPTER,
        [str(p) for p in Path("data/published").rglob("*") if p.is_file()],
        [str(p) for p in Path("data/results").rglob("*") if p.is_file()],
    output:
        EXECUTED["07_published"],
    shell:
        command("07_published")


rule explorer:
    input:
        SOURCES["08_explorer"],
        PROFILE_FILE,
        CODE,
        EXPLORER,
        WEIGHTS,
        EXECUTED["04_training"],
    output:
        EXECUTED["08_explorer"],
    threads: VALUES["threads"]
    shell:
        command("08_explorer")


rule evaluate:
    input:
        SOURCES["05_evaluation"],
        PROFILE_FILE,
        CODE,
        EXECUTED["04_training"],
    output:
        EXECUTED["05_evaluation"],
    threads: VALUES["threads"]
    resources:
        gpu=1,
    shell:
        command("05_evaluation")

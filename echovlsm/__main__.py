"""The command line: ``echovlsm VERB``, or ``python -m echovlsm VERB``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from echovlsm import base, evaluation, explorer, models, published, study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Can synthetic echocardiograms teach a vision-language segmentation model what real ones do?",
)
scores_of_the_paper = typer.Typer(help="The authors' per-image scores: fetch them, recompute our tables.")
weights_of_full_size = typer.Typer(help="Folders of weights of full size: made at random, or converted.")
published_page = typer.Typer(help="The explorer outside notebooks.")
app.add_typer(scores_of_the_paper, name="published")
app.add_typer(weights_of_full_size, name="weights")
app.add_typer(published_page, name="explorer")

_Pairs = Annotated[
    list[str] | None,
    typer.Option("-p", "--parameter", metavar="NAME VALUE", help="a notebook's parameter; also NAME=VALUE"),
]
_Profile = Annotated[str, typer.Argument(help="of notebooks/profiles, such as camus-full, or a file")]
_Cohort = Annotated[str | None, typer.Option(help="folder of the target cohort")]
_Weights = Annotated[str | None, typer.Option(help="folder or hub id of the weights")]
_Tokenizer = Annotated[str, typer.Option(help="folder or hub id of CLIP's tokenizer")]
_Merges = Annotated[Path | None, typer.Option(help="instead: CLIP's bpe_simple_vocab_16e6.txt.gz")]
_PAIRED = ("-p", "--parameter", "--here")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and exit with its status; a warm process executes notebooks, if there is one."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["execute"] and (status := study.warm.delegate(words)) is not None:
        sys.exit(status)
    app(args=joined(words), prog_name="echovlsm")


def joined(words: Sequence[str]) -> list[str]:
    """Papermill's two words after ``-p`` as one, `NAME=VALUE`: Typer takes one value for an option."""
    read: list[str] = []
    rest = iter(words)
    for word in rest:
        read.append(word)
        if word in _PAIRED:
            name = next(rest, "")
            read.append(name if "=" in name else f"{name}={next(rest, '')}")
    return read


def _pairs(given: Sequence[str] | None) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in given or ())


@contextmanager
def _told() -> Iterator[None]:
    """Say what was wrong with the input in one line, without a traceback: exit status 2."""
    try:
        yield
    except (base.provenance.RunError, base.files.FullDiskError, base.files.InUseError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def execute(
    notebook: Annotated[Path, typer.Argument(help="notebook of the study")],
    out: Annotated[Path, typer.Argument(help="where the executed notebook goes")],
    profile: Annotated[
        Path | None, typer.Option("-f", "--profile", help="file, such as notebooks/profiles/demo.yaml")
    ] = None,
    parameter: _Pairs = None,
    look: Annotated[bool, typer.Option(help="execute the cells that only show something")] = True,
    progress: Annotated[bool, typer.Option(help="a bar of cells")] = True,
) -> None:
    """Execute a notebook with Papermill, after checking its parameters."""
    with _told():
        values = study.parameters.read_profile(profile) if profile else {}
        # texts as they were typed: what they are, the notebook declares
        values = study.parameters.parameters_for(notebook, values, _pairs(parameter))
        study.execution.execute(notebook, out, values, look=look, progress=progress)


@app.command()
def evaluate(
    cohort: Annotated[Path, typer.Argument(help="folder of patients in the layout of the CAMUS release")],
    run: Annotated[Path, typer.Argument(help="run folder of a training, with its weights")],
    split: Annotated[str, typer.Option(help="auto, test, val, train, all")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="file of the scores; scores-<cohort>.parquet in the run")
    ] = None,
    size: Annotated[int, typer.Option(help="side at which masks are compared; 0: native, in mm")] = 512,
    clinical: Annotated[Path | None, typer.Option(help="also write volumes and EF here (.csv)")] = None,
    threads: Annotated[int, typer.Option(help="processor threads; 0: as the machine likes")] = 0,
    record: Annotated[Path | None, typer.Option(help="put the run on record in this folder")] = None,
) -> None:
    """Score a folder of patients with a kept run: one row a mask, and a record beside."""
    with _told():
        base.provenance.set_up(threads, 0)
        evaluation.evaluate_run(
            cohort, run, split, out=out, size=size, clinical=clinical, record=record, tell=typer.echo
        )


@app.command("record")
def put_on_record(
    run: Annotated[Path, typer.Argument(help="run folder of an evaluated training")],
    results: Annotated[Path, typer.Argument(help="folder of recorded runs, such as data/results/camus")],
) -> None:
    """Copy a run's scores, history and record to a folder of results; no weights."""
    with _told():
        typer.echo(base.RunFolder(run).put_on_record(results))


@app.command("dry-run")
def dry_run(
    profile: _Profile,
    cohort: _Cohort = None,
    weights: _Weights = None,
    parameter: _Pairs = None,
    measure: Annotated[bool, typer.Option(help="take training steps for memory and time")] = True,
    batches: Annotated[tuple[int, int], typer.Option(help="images of the measured steps")] = (1, 2),
    csv: Annotated[bool, typer.Option("--csv", help="print the table as CSV")] = False,
) -> None:
    """Look at all that a run needs before it starts; exit status 1 if something is missing."""
    with _told():
        if not 0 < batches[0] < batches[1]:
            raise ValueError(f"--batches: {batches} must be two rising numbers")
        values = study.dry_run.settings(profile, _changes(cohort, weights, parameter))
        base.provenance.set_up(values["threads"], values["seed"])
    table = study.dry_run.dry_run(values, measure=measure, batches=batches)
    typer.echo(table.to_csv(index=False) if csv else study.dry_run.report(table), nl=not csv)
    raise typer.Exit(int(not table["ok"].all()))


def _changes(cohort: str | None, weights: str | None, given: Sequence[str] | None) -> dict[str, str]:
    named = {"cohort": cohort, "weights": weights}
    return _pairs(given) | {name: value for name, value in named.items() if value}


@app.command()
def rehearse(
    profile: _Profile,
    cohort: _Cohort = None,
    weights: _Weights = None,
    parameter: _Pairs = None,
    here: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME VALUE", help="like -p, but of the rehearsal alone, for this machine"),
    ] = None,
    record: Annotated[Path | None, typer.Option(help="put the rehearsal on record in this folder")] = None,
    remark: Annotated[str, typer.Option(help="what the record's note should add")] = "",
) -> None:
    """Go a run's whole way with one patient in each part and two optimiser steps; no result."""
    with _told():
        changes = _changes(cohort, weights, parameter)
        whole = study.dry_run.settings(profile, changes)
        values = study.dry_run.settings(profile, {**study.dry_run.TWO_STEPS, **changes, **_pairs(here)})
        if not values["run"]:
            values["run"] = f"runs/{values['profile']}/rehearsal-{values['model']}"
        base.provenance.set_up(values["threads"], values["seed"])
    table = study.dry_run.dry_run(values)
    typer.echo(study.dry_run.report(table))
    if not table["ok"].all():
        raise typer.Exit(1)
    made = study.dry_run.rehearse(values)
    typer.echo(study.dry_run.summary(made))
    if record:
        before = study.dry_run.dry_run(whole)
        typer.echo(study.dry_run.put_on_record(made, table, before, record, remark))


@app.command("study")
def real_study(
    cohort: Annotated[Path, typer.Option(help="folder of CAMUS")] = Path("data/cohorts/camus"),
    block: Annotated[str, typer.Option(help="blocks, or parts, to work on, with commas; empty: all")] = "",
    records: Annotated[Path, typer.Option(help="folder of the records")] = Path("data/results/camus/study"),
    folder: Annotated[Path, typer.Option(help="folder of weights and synthetic cohorts")] = Path(
        "runs/study"
    ),
    minutes: Annotated[float, typer.Option(help="start no further run after this; 0: no limit")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="say what is left, and train nothing")
    ] = False,
) -> None:
    """Carry out the study on real hearts, or what is left of it."""
    with _told():
        wanted = study.queue.chosen(block)
        base.provenance.set_up(1, 0)
        there = study.queue.Study(cohort, folder, records)
        left = study.queue.left(wanted, there, study.queue.measured_rates(there))
        typer.echo(left.to_string(index=False, float_format="{:.0f}".format))
        if not dry_run:
            until = time.monotonic() + 60 * minutes if minutes else float("inf")
            study.queue.work_through(there, wanted, until)


@scores_of_the_paper.command()
def fetch(
    cache: Annotated[Path | None, typer.Option(help="folder; by default the user's cache")] = None,
) -> None:
    """Download the authors' scores at the pinned commit and check them."""
    with _told():
        typer.echo(published.scores.fetch_scores(cache))


@scores_of_the_paper.command()
def compute(
    scores: Annotated[
        Path | None, typer.Option(help="file or folder; by default they are downloaded")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="the authors' prompts; by default what is recorded of them")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the tables")] = None,
) -> None:
    """Recompute the tables that pages render from without the scores."""
    with _told():
        target, count = published.claims.compute(scores, prompts, out)
        typer.echo(f"{count} tables in {os.path.relpath(target)}")


@weights_of_full_size.command("random")
def random_weights(
    name: Annotated[str, typer.Argument(help="clipseg or cris")],
    folder: Annotated[Path, typer.Argument(help="folder to write")],
    tokenizer: _Tokenizer = "data/weights/clipseg-tiny",
    merges: _Merges = None,
    seed: int = 0,
) -> None:
    """Write a model of full size with random weights."""
    with _told():
        words = models.full_weights.read_tokenizer(tokenizer, merges)
        model = models.full_weights.random_model(name, words, seed)
        typer.echo(models.full_weights.write_folder(model, folder))


@weights_of_full_size.command()
def convert(
    file: Annotated[Path, typer.Argument(help="original CRIS checkpoint, or CLIP's RN50")],
    folder: Annotated[Path, typer.Argument(help="folder to write")],
    tokenizer: _Tokenizer = "openai/clip-vit-base-patch32",
    merges: _Merges = None,
    seed: Annotated[int, typer.Option(help="of what RN50 lacks: neck and decoder")] = 0,
    authors: Annotated[
        bool, typer.Option("--authors", help="padding and enlarging as in the study's code")
    ] = False,
) -> None:
    """Make a CRIS folder from an original file."""
    with _told():
        words = models.full_weights.read_tokenizer(tokenizer, merges)
        model = models.full_weights.read_original(file, words, seed, authors=authors)
        typer.echo(models.full_weights.write_folder(model, folder))


@published_page.command()
def export(
    run: Annotated[Path, typer.Argument(help="folder of a complete CLIPSeg run")],
    out: Annotated[Path | None, typer.Option(help="folder for the page; by default RUN/explorer")] = None,
    real: Annotated[bool, typer.Option("--real", help="export a model that learned from patients")] = False,
    images: Annotated[int, typer.Option(help="images of an artificial cohort to put in")] = 4,
) -> None:
    """Write a page that runs a trained model in the browser, and print its path."""
    with _told():
        page, warning = explorer.export.export(run, out, real=real, images=images)
        if warning:
            typer.echo(warning, err=True)
        typer.echo(page)


@published_page.callback()
def _explorer() -> None:
    """The explorer outside notebooks."""


if __name__ == "__main__":
    main()

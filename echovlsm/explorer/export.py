"""A trained CLIPSeg as script files, which `book/_static/explorer` runs in a reader's browser.

    echovlsm explorer export RUN --out FOLDER

writes a page that opens from disk, without a server or a network: `index.html`, its scripts, and the model
in `explorer/model`: `model.js` (configuration, tokenizer, what the page checks itself by), `part-0.js` and so
on (weights in 16 bits) and `parity.json` (what the rounding changed). Scripts, as a page opened from disk may
fetch nothing.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from echovlsm import STRUCTURES, models
from echovlsm.base import RunFolder, files, paths
from echovlsm.cohort import CohortError, read_cohort, resize_image
from echovlsm.explorer import sentences, static
from echovlsm.explorer.asking import Explorer, choose_images, describe_choice, trained_runs
from echovlsm.explorer.images import ExplorerError, Key
from echovlsm.explorer.static import ARTIFICIAL
from echovlsm.models import ModelError
from echovlsm.phantom import draw_cohort_patient, simulate
from echovlsm.prompts import make_prompt

if TYPE_CHECKING:
    from echovlsm.models import CLIPSeg

MODEL = "explorer/model"
"""Where a model lies among the static files of a page."""
MAX_BYTES = 40_000_000
"""What the weights of a page may take, in 16 bits: larger models would keep a reader waiting too long."""
PART_BYTES = 900_000
"""Weights in one script; between two of them the page can say how far it is."""
ACTIVATIONS = ("quick_gelu", "relu")
"""What `clipseg.js` knows."""
_STATIC = Path(__file__).parents[2] / "book" / "_static"
_SCRIPTS = ("explorer.js", "explorer/live.js", "explorer/clipseg.js", "vendor/tokenizers.js")
_OTHERS = ("echovlsm.css", "vendor/LICENSE.tokenizers.txt")


# -- the model ----------------------------------------------------------------------------------------------


def write_model(net: CLIPSeg, folder: Path) -> dict[str, Any]:
    """Write a model's scripts and `parity.json` into a folder, which is replaced as a whole.

    Returns
    -------
    dict
        What a page must know (`static.answers`): `folder`, `id`, `megabytes`, `parity`.

    Raises
    ------
    ExplorerError
        The model is not a CLIPSeg that `clipseg.js` can run, or too large for a page.
    """
    config = _configuration(net)
    tensors = _tensors(net)
    size = 2 * sum(values.size for values in tensors.values())
    if size > MAX_BYTES:
        raise ExplorerError(
            f"model: its weights take {size / 1e6:.0f} MB in 16 bits, a page may hold {MAX_BYTES / 1e6:.0f}; "
            "export a run of the tiny model"
        )
    places, start = {}, 0
    for name, values in tensors.items():
        places[name] = {"start": start, "length": values.size}
        start += values.size
    stored = b"".join(values.tobytes() for values in tensors.values())
    pieces = [stored[at : at + PART_BYTES] for at in range(0, size, PART_BYTES)]
    model = {
        "config": config,
        "tensors": places,
        "bytes": size,
        "parts": len(pieces),
        "tokenizer": json.loads(net.tokenizer.backend_tokenizer.to_str()),
        "tokenizer_config": {},
    }
    identity = hashlib.sha256(json.dumps(model, sort_keys=True).encode() + stored).hexdigest()[:12]
    model["probe"], parity = _parity(net)
    with files.appearing(folder) as partial:
        partial.mkdir(parents=True)
        (partial / "model.js").write_text(_register(identity, "model", model))
        for number, piece in enumerate(pieces):
            (partial / f"part-{number}.js").write_text(_register(identity, number, _text(piece)))
        (partial / "parity.json").write_text(json.dumps({"model": identity, **parity}, indent=1) + "\n")
    megabytes = round(size * 4 / 3e6, 1)
    return {"folder": MODEL, "id": identity, "megabytes": megabytes, "parity": parity}


def _register(identity: str, part: str | int, content: Any) -> str:
    values = ",".join(json.dumps(value, separators=(",", ":")) for value in (identity, part, content))
    return f"echovlsm.register({values});\n"


def _text(values: bytes) -> str:
    return base64.b64encode(values).decode()


def _configuration(net: CLIPSeg) -> dict[str, Any]:
    """What `clipseg.js` must know of a model besides its weights."""
    if getattr(net, "name", "") != "clipseg":
        raise ExplorerError(f"model: {type(net).__name__} does not run in a page, only CLIPSeg does")
    config = net.segmenter.config
    vision, text = config.vision_config, config.text_config
    if config.use_complex_transposed_convolution:
        raise ExplorerError("model: a page runs CLIPSeg's simple transposed convolution only, as rd64 has it")
    decoder_act = net.segmenter.decoder.layers[0].mlp.config.hidden_act
    parts: dict[str, dict[str, Any]] = {
        name: {"heads": heads, "act": act, "eps": eps}
        for name, heads, act, eps in (
            ("vision", vision.num_attention_heads, vision.hidden_act, vision.layer_norm_eps),
            ("decoder", config.decoder_num_attention_heads, decoder_act, vision.layer_norm_eps),
            ("text", text.num_attention_heads, text.hidden_act, text.layer_norm_eps),
        )
    }
    parts["text"] |= {"layers": text.num_hidden_layers, "width": text.hidden_size}
    parts["text"] |= {"eos": text.eos_token_id, "places": text.max_position_embeddings}
    if strange := {part["act"] for part in parts.values()} - set(ACTIVATIONS):
        raise ExplorerError(f"model: a page knows {' and '.join(ACTIVATIONS)}, not {', '.join(strange)}")
    if net.image_size % vision.patch_size:
        raise ExplorerError(f"model: patches of {vision.patch_size} do not fill {net.image_size} pixels")
    return {
        "size": net.image_size,
        "patch": vision.patch_size,
        "mean": net.image_mean.flatten().tolist(),
        "std": net.image_std.flatten().tolist(),
        "extract": list(config.extract_layers),
        "conditional": config.conditional_layer,
        **parts,
    }


def _tensors(net: CLIPSeg) -> dict[str, np.ndarray]:
    """The tensors that an answer needs, float16, flat, under their names in Transformers."""
    embeddings = net.segmenter.clip.vision_model.embeddings
    side = net.image_size // embeddings.patch_size
    positions = embeddings.position_embedding.weight.detach()
    if len(positions) != side**2 + 1:  # the page has no interpolation of its own
        pixels = (net.image_size, net.image_size)
        positions = embeddings.interpolate_pos_encoding(positions.new_empty(1, side**2 + 1, 1), *pixels)
    layers = max(net.segmenter.config.extract_layers) + 1
    found = {}
    for name, values in net.segmenter.state_dict().items():
        unused = ("logit_scale", "visual_projection", "post_layernorm", "position_ids")
        number = name.removeprefix("clip.vision_model.encoder.layers.").partition(".")[0]
        if any(word in name for word in unused) or (number.isdigit() and int(number) >= layers):
            continue
        if name == "clip.vision_model.embeddings.position_embedding.weight":
            values = positions
        if name == "decoder.transposed_convolution.weight":  # one row for each pixel of a patch
            values = values.flatten(1).T
        with np.errstate(over="ignore"):
            found[name] = values.detach().cpu().numpy().astype("<f2").ravel()
        if not np.isfinite(found[name]).all():
            raise ExplorerError(f"model: {name} has values that 16 bits cannot hold")
    return found


def _parity(net: CLIPSeg) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the page checks itself by, and what 16 bits change in the logits and masks of four phantoms."""
    import torch

    rounded = copy.deepcopy(net)
    with torch.no_grad():
        for values in rounded.parameters():
            values.copy_(values.half().float())
    others = [text for texts in sentences.OTHER_WORDS.values() for text in texts[:2]]
    asked = [make_prompt(name, "P1", 0) for name in STRUCTURES.values()]
    asked += [*others, sentences.SOMETHING_ELSE[0]]
    places = [(view, phase) for view in ("2CH", "4CH") for phase in ("ED", "ES")]
    images = [
        simulate(draw_cohort_patient(0, number), view, phase, seed=number, size=128).image
        for number, (view, phase) in enumerate(places)
    ]
    small = torch.stack([resize_image(image, net.image_size) for image in images])
    ids, mask = net.tokenize(asked)
    repeated = [part.expand(len(images), *part.shape) for part in (ids, mask)]
    with torch.no_grad():
        exact, near = (model.eval()(model.normalise(small), *repeated) for model in (net, rounded))
    apart = (exact - near).abs()
    probe = {
        "text": asked[0],
        "image": _text(small[0].numpy().tobytes()),
        "logits": _text(exact[0, 0].numpy().astype("<f4").tobytes()),
    }
    return probe, {
        "bits": 16,
        "compared": f"{len(images)} phantom images, {len(asked)} sentences, {net.image_size} px",
        "logits_lowest": float(exact.min()),
        "logits_highest": float(exact.max()),
        "logits_apart_mean": float(apart.mean()),
        "logits_apart_most": float(apart.max()),
        "mask_pixels_changed": float(((exact >= 0) != (near >= 0)).float().mean()),
        "torch": str(torch.__version__),
    }


# -- in the book --------------------------------------------------------------------------------------------


def book_page(
    run: Mapping[str, Any] | None, ask: Explorer, keys: Sequence[Key], folder: Path, *, scale: str
) -> tuple[str, dict[str, Any]]:
    """The explorer of a page of the book, whose static files get the run's model.

    Parameters
    ----------
    run, ask
        A row of `asking.trained_runs` or None, and the explorer of its `asking.load_nets`.
    keys
        Images to publish.
    folder
        Static files of the page.

    Returns
    -------
    str, dict
        HTML, empty for a real cohort; and what rounding the weights changed, empty where there is no model.
    """
    live = publish(run, ask, folder)
    if ask.meta.get("kind") not in ARTIFICIAL:
        return "", {}
    names = dict(zip(ask.nets, ["trained", "before training"] if run else ["before training"], strict=True))
    payload = static.answers(ask, keys, scale=scale, nets=names, live=live)
    return static.page(payload), live["parity"] if live else {}


def publish(run: Mapping[str, Any] | None, ask: Explorer, folder: Path) -> dict[str, Any] | None:
    """Put a run's model, the first of `ask`, into the static files of its page; an earlier one goes.

    None where a page gets no model: without a run, of a real cohort, or where the model learned from patients
    or is no CLIPSeg.
    """
    files.remove(folder)
    if run is None or run["model"] != "clipseg" or ask.meta.get("kind") not in ARTIFICIAL:
        return None
    if learned_from_patients(RunFolder(run["path"]).record):
        return None
    return write_model(ask.net(), folder / MODEL)


def learned_from_patients(record: Mapping[str, Any]) -> bool:
    """Whether a run, or a run that it started from, learned from real images; True where nothing says."""
    if record.get("kind") not in ARTIFICIAL:
        return True
    weights = record.get("parameters", {}).get("weights")
    before = paths.resolve(weights).parent / "run.yaml" if weights else None
    return bool(before and before.is_file() and learned_from_patients(RunFolder(before.parent).record))


# -- a page of its own --------------------------------------------------------------------------------------


def export(
    run: str | Path, out: str | Path | None = None, *, real: bool = False, images: int = 4
) -> tuple[Path, str]:
    """Write a page of its own that runs the model of a complete CLIPSeg run in the browser.

    Parameters
    ----------
    out
        Folder for the page; by default `explorer` in the run's.
    real
        Export also a model that learned from patients: without any image, to a folder outside this project.
    images
        How many images of the run's cohort to put in; none of a real one.

    Returns
    -------
    Path, str
        `index.html`, and the licence's warning (empty for a run on artificial images).

    Raises
    ------
    ExplorerError
        The run cannot be exported, or not to there.
    """
    record = RunFolder(run)
    found = trained_runs(record.path)
    found = found[found["path"] == str(record.path)]
    if found.empty:
        raise ExplorerError(f"run: {record.path} is no complete run with weights; run notebook 04 first")
    row = found.iloc[0].to_dict()
    if row["model"] != "clipseg":
        raise ExplorerError(f"run: {record.path} is a {row['model']}; only CLIPSeg runs in a page")
    target = paths.resolve(out) if out else record.path / "explorer"
    warning = _warning(record, target, real) if learned_from_patients(record.record) else ""
    if target.exists() and not (target / MODEL / "model.js").is_file():
        raise ExplorerError(f"out: {target} is there and is no exported page; name another folder")
    try:
        net = models.load("clipseg", record.path / "weights")
    except ModelError as error:
        raise ExplorerError(f"run: {error}") from error
    ask = None if warning else _cohort(record, net)
    with files.appearing(target) as partial:
        live = write_model(net, partial / MODEL)
        for name in (*_SCRIPTS, *_OTHERS):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_STATIC / name, partial / name)
        if ask:
            keys = choose_images(ask.frames, images)
            payload = static.answers(ask, keys, scale=str(row["scale"]), live=live)
        else:
            payload = static.without_images(str(row["name"]), live)
        page = Template((_STATIC / "explorer" / "page.html").read_text()).substitute(
            about=html.escape(describe_choice(row)).replace("&amp;#", "&#"),  # already safe for Markdown
            warning=f"<p><strong>{html.escape(warning)}</strong></p>\n" if warning else "",
            explorer=static.page(payload),
        )
        (partial / "index.html").write_text(page)
    return target / "index.html", warning


def _warning(record: RunFolder, target: Path, real: bool) -> str:
    """The licence's warning for a run on patients, whose export has to be asked for and lead out of here."""
    cohort = record.record.get("cohort", "?")
    if not real:
        raise ExplorerError(
            f"run: {record.path} learned from real images (cohort {cohort}), whose licence may bind the "
            "model; give --real to export it all the same, without images, to a folder outside this project"
        )
    if target.resolve().is_relative_to(paths.project_root().resolve()):
        raise ExplorerError(
            f"out: {target} lies in this project, which passes on no model that learned from patients; "
            "name a folder outside it"
        )
    return (
        f"This model learned from images of patients (cohort {cohort}; CAMUS is under CC BY-NC-SA 4.0, with "
        "terms of its own). Their licence may bind it, and it may give away something of them: read the "
        "licence before you pass this folder on. The folder holds no image."
    )


def _cohort(record: RunFolder, net: CLIPSeg) -> Explorer | None:
    """The run's artificial cohort, its test images if it has any; None where it is gone."""
    folder = record.record.get("parameters", {}).get("cohort")
    try:
        frames = read_cohort(paths.resolve(folder)) if folder else None
    except (CohortError, OSError):
        return None
    if frames is None or (frames.attrs.get("meta") or {}).get("kind") not in ARTIFICIAL:
        return None
    test = frames[frames["split"] == "test"]
    return Explorer(frames if test.empty else test, {"trained": net})

"""One analysis from its config to its run folder: load, ask, save, log; the same for all of them."""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from zfscope.analyses.fresh import find_recipe, named
from zfscope.analyses.members import check_prepares, open_members
from zfscope.analyses.question import Question, Result
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.callbacks.loggers import log_result, run_logger
from zfscope.console import console, results_table
from zfscope.data.datamodule import ImageData, open_data
from zfscope.data.imageset import ImageSet
from zfscope.data.quarantine import MANIFEST, counts, manifest
from zfscope.data.reading import UnreadableImage, read_image
from zfscope.data.spec import AugmentConfig, DataConfig
from zfscope.files import replacing, write_arrays, write_text
from zfscope.networks.checkpoints import load_network, run_config, run_progress
from zfscope.networks.devices import find_device, keep_memory
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.ranks import sharing_passes, started_by_torchrun
from zfscope.report.conditions import stand_in
from zfscope.report.paper import numbers_of
from zfscope.report.readings import Run
from zfscope.runs import environment, is_below, replacing_results, write_results
from zfscope.schema import about, check, leaves, printable
from zfscope.secrets import is_from_environment, masked

# Analyses whose passes over the images processes may share.
SHARED = ("evaluate", "ensemble", "projections", "transfer", "probes", "embedding")
# What makes a data set another one than its name says.
SUBSET_KEYS = ("dataset", "target", "classes", "cells", "exclude", "clutter")


def analyze(config: AnalyzeConfig, folder: Path, overrides: Sequence[str] = ()) -> None:
    """Load what is asked about and its data, run the analysis; save, log and print its result in the run folder.

    ``overrides`` are what was typed: an augmentation that was not is the run's (see ``find_data``).
    """
    if (processes := started_by_torchrun()) > 1 and config.analysis.name not in SHARED:
        raise ValueError(
            f"analysis={config.analysis.name} runs in one process, and torchrun started {processes}; start it with "
            f"python alone ({', '.join(SHARED)} share their passes over the images)"
        )
    with sharing_passes():
        _analyze(config, folder, overrides)


def _analyze(config: AnalyzeConfig, folder: Path, overrides: Sequence[str]) -> None:
    keep_memory()
    question = ask(config, folder, any(re.match(r"\+*data[./@]augment", override) for override in overrides))
    conditions = conditions_of(config, question)
    tell_unfinished(conditions)
    try:
        result = import_module(f"zfscope.analyses.{config.analysis.name}").analyse(question)
    except ValueError as error:
        if key := option_of(str(error), config.analysis.model_dump()):
            raise ValueError(f"{key}{error}") from error
        raise
    conditions |= result.conditions
    conditions["data_fingerprint"] = fingerprint_of(question)  # reads pixels: only once nothing was refused
    if question.data is not None and any(left_out := counts(question.data.splits).values()):
        conditions["quarantined"] = counts(question.data.splits)
        result = replace(result, files={**result.files, MANIFEST: manifest(question.data.splits)})
        told = f"images that cannot be read and are in no number: {sum(left_out)}, listed in {folder / MANIFEST}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    paper = numbers_of(question.run.get("paper"))
    metrics = {name: {"paper": paper.get(name), **metric} for name, metric in result.metrics.items()}
    if any(metric["paper"] is not None for metric in metrics.values()):
        run = Run(str(folder), config.analysis.name, metrics, conditions)
        conditions["stand_in"] = stand_in(run, question.run.get("paper"))
    with replacing_results(folder) as new:
        pictures = save(result, new)
        write_results(new, metrics, conditions)
    shown = {name: metric for name, metric in metrics.items() if metric["value"] is not None}
    several = not isinstance(config.checkpoint, str | None)
    title = masked(", ".join(config.checkpoint) if several else config.checkpoint or config.analysis.name)
    console.print(results_table(shown, title, conditions.get("stand_in")))
    for note in result.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"saved in {folder}", markup=False, highlight=False, soft_wrap=True)
    log(config, folder, metrics, {name: folder / path.relative_to(new) for name, path in pictures.items()})


def option_of(refusal: str, options: Mapping[str, Any]) -> str:
    """The key of the option that a refusal of the library is about, to stand before it; empty where none is named.

    The library knows the arguments of its functions, ``size=100: …`` or ``no layer 'conv9'; …``.
    """
    argument, value = re.match(r"(\w+)=", refusal), re.match(r"(?:there is )?no \w+ '([^']+)'", refusal)
    if argument and argument[1] in options:
        return "analysis."
    held = {name: [held] if isinstance(held, str) else held for name, held in options.items()}
    holders = [name for name, texts in held.items() if value and isinstance(texts, tuple | list) and value[1] in texts]
    return f"analysis.{holders[0]}: " if holders else ""


def tell_unfinished(conditions: Mapping[str, Any]) -> None:
    """Say of which epoch a network is whose training has not come to its end."""
    for network in conditions.get("members") or [{"checkpoint": conditions["checkpoint"], **(conditions["run"] or {})}]:
        if network.get("finished") is False:
            epochs = f"{network['epoch']} epoch" + "s" * (network["epoch"] != 1)
            text = f"the training of {network['checkpoint']} has not finished: the network is that after {epochs}"
            console.print(f"{text}, {network['steps']} steps", markup=False, highlight=False, soft_wrap=True)


def ask(config: AnalyzeConfig, folder: Path, augment_typed: bool = False) -> Question:
    """Load what a config asks about, and its data."""
    name, device = config.analysis.name, find_device(config.device)
    if started_by_torchrun() > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if config.image is not None:
        check_image(config.image)
    network, members, run, preprocessing, recipe = None, (), {}, None, None
    if name == "ensemble":
        with about("checkpoint", config.checkpoint if isinstance(config.checkpoint, str) else list(config.checkpoint)):
            members = open_members(config.checkpoint, config.analysis.partial)
        run = dict(members[0].config)
        largest = max(members, key=lambda member: member.network.preprocessing.resize)
        preprocessing = largest.network.preprocessing  # data may be read at that size
    elif config.checkpoint is not None:
        with about("checkpoint", config.checkpoint):
            network = load_network(config.checkpoint, config.weights_file).to(device)
            run = run_config(config.checkpoint)
            check_prepares(network, config.checkpoint)
        preprocessing = network.preprocessing
        recipe = find_recipe(config.analysis, config.checkpoint, network, run)
    known = dict(run.get("data", {}))
    if recipe is not None and config.analysis.scratch_model is not None:
        known["augment"] = recipe.augment.model_dump(mode="json")  # views are of its training, not of the checkpoint's
    data = None if name == "ledger" else find_data(config, known, preprocessing, augment_typed)
    return Question(
        config.analysis, device, folder, config.checkpoint, network, members, run, data, config.image, recipe
    )


def check_image(path: str) -> None:
    """Refuse a file that was typed as ``image=`` and is no image, before network and data are opened."""
    try:
        read_image(path)
    except UnreadableImage as error:
        raise ValueError(f"image={printable(path)}: {error.cause}; give an image file, as a JPEG or PNG") from error


def find_data(
    config: AnalyzeConfig, known: Mapping[str, Any], preprocessing: Preprocessing | None, augment_typed: bool = False
) -> ImageData | None:
    """The data of the checkpoint's run, changed by the command line; or with ``data=NAME`` that data set.

    Canvas and crop are the network's. With the user's own images None where there is no data. ``known`` is the data
    config of the checkpoint's run. Its augmentation goes over to a data set that has none of its own (the plain one),
    unless one was typed.
    """
    own = config.image or getattr(config.analysis, "boxes", None)
    values = typed = {name: value for name, value in config.data.items() if value is not None}
    if "cache" not in typed and not is_below(str(known.get("cache", "")), Path.cwd()):  # a stranger's, perhaps
        told = f"data.cache={known['cache']} of the run lies outside the working directory; unless typed, data_cache is"
        console.print(f"{told} used", markup=False, soft_wrap=True)
        known = {name: value for name, value in known.items() if name != "cache"}
    if "name" in typed:  # another data set has defaults of its own; where its files lie is known from the run
        usual = {"cache": "data_cache", "num_workers": "auto"}
        usual |= {} if augment_typed else {"augment": AugmentConfig().model_dump(mode="json")}
        values = typed | {name: known[name] for name in usual if name in known and typed.get(name) == usual[name]}
        known = {}
    elif "augment" in typed:  # single values of it
        values = typed | {"augment": {**(known.get("augment") or {}), **typed["augment"]}}
    named = "name" in {**known, **values}
    if not named and own is not None and not typed:
        return None  # of public weights: there is no run whose data are known
    if not named and own is None:
        which = f"the checkpoint {config.checkpoint}" if config.checkpoint else f"analysis={config.analysis.name}"
        raise ValueError(f"{which} names no data set; name one, such as data=imagenet data.root=DIR")
    sizes = {"resize": preprocessing.resize, "crop": preprocessing.crop} if preprocessing else {}
    try:
        check_stored({"data": {name: value for name, value in known.items() if name not in {*values, *sizes}}})
        data_config = check(DataConfig, {**known, **values, **sizes, "batch_size": 1}, "data")
        return ImageData(open_data(data_config), data_config, preprocessing)
    except (ValueError, OSError, ImportError) as error:
        if own is None or typed:
            raise
        console.print(f"only {own} is looked at: {error}", markup=False)
        return None


def check_stored(values: Mapping[str, Any], way_out: str = "type it") -> None:
    """Refuse values of a checkpoint's run that it took from the environment: nothing resolves them here."""
    for key, value in leaves(values):
        if is_from_environment(value):
            raise ValueError(
                f"{key}={value} of the checkpoint's run is not resolved against the environment; {way_out}"
            )


def conditions_of(config: AnalyzeConfig, question: Question) -> dict[str, Any]:
    """Under which the numbers are found: networks and how they were trained, data, options, machine.

    ``question`` holds the options that change the numbers, ``unusual`` the names of those that differ from their
    defaults; ``files`` the contents, as SHA-256, of the files that options name.
    """
    options, run, data = config.analysis, question.run, question.data
    checkpoint = config.checkpoint
    views = {"augment": question.other_views} if question.other_views else {}
    values = options.model_dump(mode="json") | views
    if values.get("scratch_model") is not None:
        values["scratch_model"] = named(values["scratch_model"])
    own = ("images", "indices") if config.image else ()  # they choose among the data's images
    numbers = [name for name in values if name not in options.irrelevant and name not in own]
    changed = options.model_dump(exclude_defaults=True) | views
    files = {
        "weights_file": config.weights_file,
        "image": config.image,
        "boxes": values.get("boxes"),
        "exclude": data and data.config.exclude,
    }
    conditions = {
        "checkpoint": checkpoint if checkpoint is None or isinstance(checkpoint, str) else list(checkpoint),
        "data": data.config.name if data else None,
        **(subset_of(data.config.model_dump()) if data else {}),
        "files": {name: digest_of(path) for name, path in files.items() if path},
        "run": {
            "seed": run.get("seed"),
            "epochs": run.get("optim", {}).get("epochs"),
            "model": run.get("model", {}).get("name"),
            "data": run.get("data", {}).get("name"),
            **subset_of(run.get("data", {})),
            "stem": stem_of(run.get("model", {})),
            "filter_rms": run.get("model", {}).get("filter_rms"),
        }
        if run
        else None,
        "question": {name: values[name] for name in numbers},
        "unusual": [name for name in numbers if name in changed],
        "environment": environment(str(question.device), "64-bit" if options.name == "correspondence" else "32-bit"),
    }
    if question.members:
        conditions["members"] = [
            {"checkpoint": member.path, "seed": member.config.get("seed"), **run_progress(member.path)}
            for member in question.members
        ]
    elif question.network is not None:
        conditions["run"] = {**(conditions["run"] or {}), **run_progress(checkpoint, config.weights_file)}
    image = {"image": config.image} if config.image else {}
    # What was found goes before what was asked: analysis.members is a number, and these are networks.
    return {name: value for name, value in values.items() if name not in own} | conditions | image


def fingerprint_of(question: Question) -> str | None:
    """A digest of the images that are looked at; None where there are none but the user's own."""
    if question.data is None or question.image is not None or getattr(question.options, "boxes", None) is not None:
        return None
    part = getattr(question.options, "part", "")
    try:
        images: list[ImageSet] = list(question.data.splits.parts.values()) if part == "" else [question.images]
    except ValueError:  # a part that the data has not: the analysis refuses it, or first what else is wrong
        return None
    return hashlib.sha256("".join(part.fingerprint for part in images).encode()).hexdigest()[:16]


def digest_of(path: str) -> str | None:
    """SHA-256 of a file's content; None where there is no file to read, which its reader will say."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def subset_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a data set another one than its name says: which of torchvision's, target, classes, images."""
    return {key: data[key] for key in SUBSET_KEYS if data.get(key)}


def stem_of(model: Mapping[str, Any]) -> str | None:
    """The first layer's filters, such as ``7x7/2``; None where the paper's layers are not there."""
    first = model.get("conv1")
    return None if first is None else "{0}x{0}/{1}".format(first["kernel_size"], first["stride"])


def save(result: Result, folder: Path) -> dict[str, Path]:
    """Write a result's figures (plots as PDF, too) and arrays, move its folders in; returns the pictures by name."""
    pictures = {}
    arrays = result.arrays
    try:
        for name, figure in result.figures.items():
            path = pictures[name] = folder / "figures" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = figure() if callable(figure) else figure
            with replacing(path) as file:
                picture.save(file, "png")
            if hasattr(picture, "figure"):
                with replacing(path.with_suffix(".pdf")) as file:
                    picture.save(file, "pdf")
        if isinstance(arrays, Mapping):
            write_arrays(folder / "arrays.npz", arrays)
        elif arrays is not None:
            with replacing(folder / "arrays.npz") as file:
                arrays.write(file)
    finally:
        if arrays is not None and not isinstance(arrays, Mapping):
            arrays.close()
    try:
        for name, text in result.files.items():
            write_text(folder / name, masked(text))
        for name, written in result.folders.items():
            written.rename(folder / name)
    finally:
        for written in result.folders.values():
            shutil.rmtree(written, ignore_errors=True)
    return pictures


def log(config: AnalyzeConfig, folder: Path, metrics: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """One run of the logger for this analysis: its metrics as a summary, its pictures."""
    name = config.analysis.name
    recorded = config.recorded()
    about = {"name": f"{name} {recorded['checkpoint'] or ''}".strip(), "tags": [name], "config": recorded}
    with run_logger(config.logger.model_dump(), folder, **about) as logger:
        log_result(logger, {key: metric["value"] for key, metric in metrics.items()}, pictures)

"""Planted results, in the form in which train.py and analyze.py record them."""

from functools import cache

import numpy as np

from tests.conftest import composed
from zfscope.report.claims import measure
from zfscope.report.ledger import fill
from zfscope.report.readings import TRAINING, Run
from zfscope.training.identity import training_identity
from zfscope.training.spec import TrainConfig

ON_PHANTOM = ("data=phantom", "scale=laptop", "callbacks=none", "logger=none", "model=zfnet_mini")
ERRORS = {"train/top1_error": 30.0, "val/top1_error": 40.0, "val/top1_error_ten_crops": 38.0}
ERRORS |= {"val/top5_error_ten_crops": 16.0}

# What an analysis' question leaves out.
UNIMPORTANT = ("name", "batch_size", "memory_gb", "shown", "top", "maps", "members", "partial", "seed")
STEMS = {"7x7/2": "7x7s2", "11x11/4": "11x11s4", "7x7/4": "7x7s4", "11x11/2": "11x11s2"}


@cache
def identity_of(*overrides, images="the images"):
    config = TrainConfig.model_validate(composed(*overrides)).model_dump()
    return training_identity(config, images)


@cache
def options_of(name):
    return composed(f"analysis={name}", name="analyze")["analysis"]


def metrics_of(values):
    return {name: value if isinstance(value, dict) else {"value": value, "unit": "%"} for name, value in values.items()}


def training(
    folder, experiment, *overrides, seed=0, data="imagenet", epochs=70, values=ERRORS, images="the images", **more
):
    """A result of train.py; ``identity=None`` in ``more`` is one of an older version."""
    conditions = {"overrides": [f"experiment={experiment}", *overrides], "data": data, "seed": seed, "epochs": epochs}
    conditions |= {"images": {"train": 6000, "val": 1000}, "parameters": 62_357_608}
    if "identity" not in more:
        known = [override for override in conditions["overrides"] if not override.startswith(("hydra.", "seed="))]
        chosen = [] if any(override.startswith("data=") for override in known) else [f"data={data}"]
        more["identity"] = identity_of(*chosen, *known, f"optim.epochs={epochs}", images=images)
    return Run(folder, TRAINING, metrics_of(values), conditions | more)


def identity_of_network(run):
    """Of a training with this model, data, stem and radius."""
    overrides = [f"model={run['model']}", f"data={run['data']}", f"optim.epochs={run['epochs']}"]
    if run["stem"] in STEMS and run["model"].startswith("zfnet"):
        overrides += [f"model/stem={STEMS[run['stem']]}"]
    overrides += [f"data.classes=[{','.join(run['classes'])}]"] if "classes" in run else []
    return identity_of(*overrides, f"model.filter_rms={'null' if run['filter_rms'] is None else run['filter_rms']}")


def analysis(folder, name, values, *, seed=0, data="phantom", run=None, checkpoint="outputs/RUN", **options):
    """A result of analyze.py, with its options as conf/analysis gives them."""
    trained = {"seed": seed, "epochs": 6, "model": "zfnet_mini", "data": "phantom", "stem": "7x7/2", "filter_rms": 0.1}
    trained |= run or {}
    if "identity" not in trained:
        trained["identity"] = identity_of_network(trained)
    about = {key: options.pop(key) for key in ("classes", "clutter", "files", "members", "unusual") if key in options}
    about |= {"data_fingerprint": options.pop("data_fingerprint", f"of {data}")}
    question = {key: value for key, value in (options_of(name) | options).items() if key not in UNIMPORTANT}
    conditions = {"name": name, "checkpoint": checkpoint, "data": data, "run": trained, "question": question}
    return Run(folder, name, metrics_of(values), conditions | about)


def ensemble(groups, *, folder="six", data="imagenet", model="zfnet", part="val", first_seed=0, **options):
    """Members by architecture, and how many; of ``model`` unless a group's name is a model of conf/."""
    values = {f"{part}/top1_error_ten_crops": 36.0, f"{part}/top5_error_ten_crops": 0.0, "gain/top1_error": 9.0}
    for number, (name, count) in enumerate(groups.items()):
        for row, value in (("one_net", 38.0), *(((f"{count}_nets", 37.0 + number),) if count > 1 else ())):
            values |= {f"group/{name}/{row}/top1_error_ten_crops": value, f"group/{name}/{row}/top5_error": value / 2}
    values["gain/top1_error_ten_crops"] = {"value": 1.5, "interval": [1.0, 2.0]}
    names = [name for name, count in groups.items() for _ in range(count)]
    known = ("zfnet", "zfnet_wide", "zfnet_mini", "zfnet_mini_wide", "alexnet")
    members = [
        {
            "checkpoint": f"outputs/{folder}/{number}",
            "seed": number,
            "identity": identity_of(f"model={name if name in known else model}", f"data={data}", "optim.epochs=6"),
        }
        for number, name in enumerate(names, first_seed)
    ]
    run = {"data": data, "model": model}
    return analysis(folder, "ensemble", values, data=data, run=run, **({"members": members} | options))


def of_folds(*values):
    return {"value": float(np.mean(values)), "spread": float(np.std(values, ddof=1)), "values": list(values)}


def cell(cells, table, row, column):
    (found,) = [place for place in cells if (place.table, place.row, place.column) == (table, row, column)]
    return found


def lines_of(runs, table, row, column):
    return cell(fill(runs), table, row, column).ours


def finding(runs, word):
    (found,) = [claim for claim in measure(runs) if word in claim.claim.statement]
    return found

"""kill -9: what a killed run had saved goes on to the bytes of a run that nothing killed, whatever was under way."""

import csv
import hashlib
import io
import json
import os
import signal
from collections import Counter
from contextlib import redirect_stdout

import pytest
import torch

from tests.commands.test_stops import STEP, VALIDATION, patched
from tests.conftest import on_folders, quick_first, type_command, write_folders
from zfscope.data.order import TrainBatches
from zfscope.networks.checkpoints import read_checkpoint

WRITER, SAVING = "zfscope.runs.os.replace", "zfscope.networks.checkpoints.torch.save"
READING = "zfscope.data.transforms.Examples.__getitem__"
CONNECTOR = "lightning.pytorch.trainer.connectors.logger_connector.logger_connector._LoggerConnector"
UPDATE = "zfscope.training.classifier.Classifier.optimizer_step"
# What is under way when the kill comes, and at which call. The first checkpoint is written after three steps.
POINTS = {
    **{f"batch {number}": (STEP, number) for number in (4, 5, 6, 7, 8, 12)},
    **{f"validation batch {number}": (VALIDATION, number) for number in (1, 2, 7)},
    **{f"reading image {number}": (READING, number) for number in (30, 40)},
    "an update": (UPDATE, {1: 5, 3: 3}),  # by the window of accumulated batches
    "the second writing of a checkpoint": (SAVING, 2),
    "the fifth writing of a checkpoint": (SAVING, 5),
    "a checkpoint that takes its name": (WRITER, 8),
    "the end of a step that was saved": ("zfscope.training.checkpointing.LastCheckpoint._end_step", 7),
    "the end of an epoch that was saved": (f"{CONNECTOR}.update_train_epoch_metrics", 2),
    "a picture": ("zfscope.callbacks.filter_images.show", 3),
    "the final evaluation": ("zfscope.training.run.predict", 1),
    "writing the results": ("zfscope.training.run.write_results", 1),
}
COMBINATIONS = [
    (workers, window, schedule) for workers in (0, 2) for window in (1, 3) for schedule in ("cosine", "plateau")
]
# Ten points for each combination, and each point for four of them.
CASES = [
    (point, combination)
    for number, combination in enumerate(COMBINATIONS)
    for point in list(POINTS)[(number + number // 2 + number // 4) % 2 :: 2]
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("killed") / "images", {"train": 8, "val": 4})


@pytest.fixture(scope="module")
def whole_runs(images):
    """The digests of runs that nothing kills, each made once."""
    return {}


def overrides(images, combination):
    workers, window, schedule = combination
    left_out = ("data.num_workers", "data.cache", "logger")
    own = [override for override in on_folders(images) if not override.startswith(left_out)]
    own += [f"data.num_workers={workers}", f"trainer.accumulate_grad_batches={window}", f"optim/schedule={schedule}"]
    own += ["optim.schedule.patience=0"] if schedule == "plateau" else []
    own += ["logger=csv", "trainer.log_every_n_steps=1", "trainer.max_epochs=4", "++optim.ema.decay=0.5"]
    own += ["callbacks=default", *(f"callbacks.{name}=null" for name in ("projections", "occlusion_maps"))]
    own += ["checkpoints.every_n_steps=1"] if workers == 0 else []  # else once before and once after a validation
    return [*own, "evaluate.ten_crops=false", "hydra.run.dir=run"]


def train(folder, images, *typed, change=lambda patch: None):
    """Train in a process of its own, which may be killed; returns its exit code, or minus the signal's number."""
    if not folder.exists():
        folder.mkdir()
        (images.parent / "data_cache").mkdir(exist_ok=True)
        (folder / "data_cache").symlink_to(images.parent / "data_cache")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
                change(patch)
                code = type_command(patch, "train", *typed)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(place, call):
    """What makes the training be killed at this call of a function, also in a process that reads images."""

    def change(patch):
        main = os.getpid()
        patched(patch, place, call, lambda: os.kill(main, signal.SIGKILL))

    return change


def digests(run):
    """SHA-256 of all that a run ends with: weights, momentum, averages, schedule, logged and final metrics."""
    checkpoint = read_checkpoint(run / "checkpoints/last.ckpt")
    checkpoint["progress"].pop("seconds")
    checkpoint["zfscope"]["config"].pop("resume")
    for state in checkpoint["callbacks"].values():
        state.pop("best_model_path", None)  # the metrics tell which it is
        (state.get("row") or {"metrics": {}})["metrics"].pop("images_per_second", None)
    loops = checkpoint["loops"]["fit_loop"]
    loops.pop("epoch_loop.val_loop.batch_progress")  # counts the batch at which a validation was cut twice
    rows = {}  # what a killed run had logged after its last checkpoint is logged once more
    for path in sorted(run.rglob("metrics.csv")):
        for row in csv.DictReader(path.open()):
            step = row.pop("step")
            rows |= {(step, name): value for name, value in row.items() if value and name != "images_per_second"}
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    parts = {**checkpoint, "logged": dict(sorted(rows.items())), "final": metrics}
    return {name: digest(value, str(run.resolve())) for name, value in parts.items()}


def digest(value, place=""):
    """SHA-256 of tensors and plain containers, wherever they lie."""
    if isinstance(value, dict):
        value = [(digest(key, place), digest(item, place)) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        value = [digest(item, place) for item in value]
    elif isinstance(value, torch.Tensor):
        content = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        value = (str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest())
    elif isinstance(value, str) and place:
        value = value.replace(place, "RUN")
    return hashlib.sha256(repr(value).encode()).hexdigest()


def whole(whole_runs, folder, images, combination):
    if combination not in whole_runs:
        assert train(folder / "whole", images, *overrides(images, combination)) == 0
        whole_runs[combination] = digests(folder / "whole/run")
    return whole_runs[combination]


@pytest.mark.parametrize("case", quick_first(CASES, 2), ids=lambda case: f"{case[0]}-{'-'.join(map(str, case[1]))}")
def test_a_killed_run_goes_on_to_the_bytes_of_one_that_nothing_killed(whole_runs, images, tmp_path, case):
    point, combination = case
    expected = whole(whole_runs, tmp_path, images, combination)

    own = overrides(images, combination)
    place, call = POINTS[point]
    call = call[combination[1]] if isinstance(call, dict) else call
    assert train(tmp_path / "killed", images, *own, change=killed_at(place, call)) == -signal.SIGKILL
    assert train(tmp_path / "killed", images, "resume=run") == 0

    assert digests(tmp_path / "killed/run") == expected
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda values: "-".join(map(str, values)))
def test_control_images_in_another_order_after_a_kill_are_noticed(whole_runs, images, tmp_path, combination):
    def from_the_start(patch):
        patch.setattr(
            TrainBatches, "position", property(lambda self: lambda: 0, lambda self, value: None), raising=False
        )

    own = overrides(images, combination)

    assert train(tmp_path / "killed", images, *own, change=killed_at(STEP, 8)) == -signal.SIGKILL
    assert train(tmp_path / "killed", images, "resume=run", change=from_the_start) == 0

    ends, expected = digests(tmp_path / "killed/run"), whole(whole_runs, tmp_path, images, combination)
    assert ends["state_dict"] != expected["state_dict"]
    assert ends["optimizer_states"] != expected["optimizer_states"]


@pytest.mark.parametrize("combination", quick_first(COMBINATIONS[4:], 0), ids=lambda values: "-".join(map(str, values)))
def test_each_image_is_trained_on_once_an_epoch_also_where_kills_cut_it(images, tmp_path, combination):
    def recorded(patch):
        from zfscope.training.classifier import Classifier

        original = Classifier.training_step

        def training_step(self, batch, index):
            number = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
            with open("ids.txt", "a") as file:
                file.write(f"{number} {' '.join(str(int(index)) for index in batch[2])}\n")
            return original(self, batch, index)

        patch.setattr(Classifier, "training_step", training_step)

    def both(call):
        def change(patch):
            recorded(patch)
            killed_at(STEP, call)(patch)

        return change

    own = overrides(images, combination)
    assert train(tmp_path / "killed", images, *own, "checkpoints.every_n_steps=1", change=both(5)) == -signal.SIGKILL
    for _ in range(3):
        assert train(tmp_path / "killed", images, "resume=run", change=both(3)) == -signal.SIGKILL
    assert train(tmp_path / "killed", images, "resume=run", change=recorded) == 0

    lines = [line.split() for line in (tmp_path / "killed/ids.txt").read_text().splitlines()]
    batches = {int(number): ids for number, *ids in lines}  # one that was trained again counts once
    for epoch in range(4):
        seen = Counter(index for number in range(3 * epoch, 3 * epoch + 3) for index in batches[number])
        assert sorted(map(int, seen)) == list(range(24)) and set(seen.values()) == {1}

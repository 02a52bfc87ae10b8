"""Where W&B's server, its process or its folders fail, a training goes on with the same weights, soon."""

import atexit
import gzip
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.callbacks.conftest import fit
from tests.callbacks.test_loggers import Logging
from zfscope.callbacks import wandb_runs
from zfscope.callbacks.loggers import run_logger

START_SECONDS, END_SECONDS = 20, 15  # what a failing service may cost
OPTIONS = {"name": "wandb", "project": "zfscope", "entity": None, "log_model": False}


def train(folder, mode, environment, broken):
    """In a forked process, for W&B keeps the first server that a process talked to: a training, and what it comes to.

    Its output goes to ``folder/out`` and ``folder/err``; it waits for the event ``broken`` before its second epoch.
    """
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    atexit._clear()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update({name: value for name, value in environment.items() if value is not None})
    os.environ.pop("HOME" if environment.get("HOME", "") is None else "", None)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    since = time.monotonic()
    with run_logger(OPTIONS | {"mode": mode}, folder / "run", name="x") as logger:
        print("start", time.monotonic() - since)
        module = Waiting(broken)
        fit(folder / "run", module, logger=logger, max_epochs=2)
        print("weights", digest(module))
        since = time.monotonic()
    print("end", time.monotonic() - since)
    atexit._run_exitfuncs()
    print("left", time.monotonic() - since)
    os._exit(0)


class Waiting(Logging):
    """Waits before its second epoch until somebody has broken what shall break."""

    def __init__(self, broken):
        super().__init__()
        self.broken = broken

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            print("half")
            self.broken.wait(60)


def digest(module):
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in module.state_dict().values())).hexdigest()


class Server(BaseHTTPRequestHandler):
    """As W&B's own as far as a run needs it; ``status`` is what it answers, None hangs, ``gone`` hangs up."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.status is None:
            time.sleep(60)
        if self.server.status == "gone":
            self.close_connection = True
            return
        entity = {"id": "e", "name": "someone"}
        run = {"id": "cnVu", "name": "run1", "displayName": "x", "config": "{}", "historyLineCount": 0}
        bucket = run | {"project": {"id": "p", "name": "zfscope", "entity": entity}}
        data = {"viewer": {"id": "v"}, "serverInfo": {"features": []}, "upsertBucket": {"bucket": bucket}}
        data |= {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}, "entity": {"organization": None}}
        answer = json.dumps({"data": data | {"model": None}} if self.path == "/graphql" else {}).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def log_message(self, *_): ...


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_): ...


@contextmanager
def serving(status):
    with Quiet(("127.0.0.1", 0), Server) as server:
        server.status = status
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def break_process(training):
    """Kill W&B's own process of a training: a child of it."""
    children = subprocess.run(["pgrep", "-P", str(training.pid), "wandb-core"], capture_output=True, text=True)
    (number,) = children.stdout.split()
    os.kill(int(number), 9)


BEFORE = {  # the server's status ("none": no server), the environment, what is told
    "no key": (200, {"WANDB_API_KEY": None}, r"no API key for http://127\.0\.0\.1"),
    "a key that is too short": (200, {"WANDB_API_KEY": "short"}, r"WANDB_API_KEY invalid"),
    "a wrong key": (401, {}, r"does not take the API key, HTTP 401"),
    "no server": ("none", {}, r"refused"),
    "a server that never answers": (None, {}, r"did not answer in 5 s"),
    "a server that is broken": (500, {}, r"answers HTTP 500"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What the training comes to without W&B."""
    module = Logging()
    fit(tmp_path_factory.mktemp("alone"), module, max_epochs=2)
    return digest(module)


def trained(folder, mode="online", break_it=lambda training: None, **environment):
    """What a training in a process says: weights and delays by name, other lines of its output, its errors."""
    environment = {"WANDB_API_KEY": "a" * 40, "NETRC": str(folder / "netrc"), **environment}
    processes = multiprocessing.get_context("fork")
    broken = processes.Event()
    training = processes.Process(target=train, args=(folder, mode, environment, broken))
    training.start()
    while training.is_alive() and "half\n" not in read(folder / "out"):
        time.sleep(0.1)
    break_it(training)
    broken.set()
    training.join(180)
    out, err = read(folder / "out"), read(folder / "err")
    assert training.exitcode == 0, err
    lines = [line for line in out.splitlines() if line.strip() and line != "half"]
    facts = dict(line.split() for line in lines if re.match(r"(start|weights|end|left) \S+$", line))
    return facts, [line for line in lines if line.split()[0] not in facts], err


def read(path):
    return path.read_text() if path.is_file() else ""


def warned(err):
    """The lines of a process's errors that somebody would read, without the places of warnings in the code."""
    lines = [line for line in err.splitlines() if re.search("wandb|W&B|Error|raised|Traceback", line)]
    return [line for line in lines if not line.startswith("  ")]


def check_delays(facts):
    shared = max(1.0, os.getloadavg()[0] / os.cpu_count())  # how many processes share each core
    assert float(facts["start"]) < START_SECONDS * shared
    assert float(facts["left"]) < END_SECONDS * shared


@pytest.mark.slow
@pytest.mark.parametrize("case", BEFORE)
def test_a_run_whose_server_cannot_take_it_goes_on_offline_with_the_same_weights(
    tmp_path, weights, case, record_property
):
    status, environment, told = BEFORE[case]
    with serving(200 if status == "none" else status) as server:
        port = 9 if status == "none" else server.server_port
        facts, lines, err = trained(tmp_path, WANDB_BASE_URL=f"http://127.0.0.1:{port}", **environment)

    record_property("cases", 1)
    assert facts["weights"] == weights
    check_delays(facts)
    (line,) = warned(err)
    assert re.search(
        rf"W&B is not within reach \(.*{told}.*\); this run is logged offline, `wandb sync` sends it", line
    )
    assert lines[-1].startswith(f"wandb sync {tmp_path}/run/wandb/offline-run-")


@pytest.mark.slow
@pytest.mark.parametrize("breakage", ["refuses", "hangs", "answers 500"])
def test_a_run_whose_server_dies_ends_soon_with_the_same_weights_and_says_what_sends_the_rest(
    tmp_path, weights, breakage
):
    with serving(200) as server:

        def break_it(_):
            server.status = {"refuses": "gone", "hangs": None, "answers 500": 500}[breakage]
            if breakage == "refuses":
                server.shutdown()
                server.socket.close()

        place = f"http://127.0.0.1:{server.server_port}"
        facts, lines, err = trained(tmp_path, break_it=break_it, WANDB_BASE_URL=place)

    assert facts["weights"] == weights
    check_delays(facts)
    (line,) = warned(err)
    assert re.search(rf"W&B did not close the run \(.*\); `wandb sync {tmp_path}/run/wandb/run-\S+` sends what", line)
    assert lines == [f"W&B: {place}/someone/zfscope/runs/{lines[0].rpartition('/')[2]}"]


@pytest.mark.slow
def test_a_run_whose_server_works_is_sent_and_nothing_is_warned_of(tmp_path, weights):
    with serving(200) as server:
        facts, _, err = trained(tmp_path, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}")

    assert facts["weights"] == weights
    assert warned(err) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_outlives_the_process_of_wandb(tmp_path, weights, mode):
    with serving(200) as server:
        place = f"http://127.0.0.1:{server.server_port}"
        facts, _, err = trained(tmp_path, mode, break_process, WANDB_BASE_URL=place)

    assert facts["weights"] == weights
    check_delays(facts)
    (line,) = warned(err)
    assert re.search(r"W&B failed \(.*\); the run goes on, and W&B has it up to here", line)


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/proc/none", "a file"])
def test_a_run_needs_no_home(tmp_path, weights, home):
    (tmp_path / "file").write_text("")
    value = str(tmp_path / "file") if home == "a file" else home

    facts, lines, err = trained(tmp_path, "offline", HOME=value)

    assert facts["weights"] == weights
    assert warned(err) == [] and len(lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_whose_folder_for_wandb_cannot_be_made_is_logged_to_csv_files(tmp_path, weights, mode):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/wandb").write_text("")

    facts, _, err = trained(tmp_path, mode, WANDB_BASE_URL="http://127.0.0.1:9")

    assert facts["weights"] == weights
    check_delays(facts)
    (line,) = warned(err)
    assert re.search(r"W&B cannot start \(.*Not a directory.*\); this run is logged to CSV files", line)
    assert (tmp_path / "run/csv/version_0/metrics.csv").is_file()


def test_work_that_does_not_end_is_given_up():
    since = time.monotonic()

    error = wandb_runs.within(0.2, lambda: time.sleep(5))

    assert isinstance(error, TimeoutError) and time.monotonic() - since < 2
    assert wandb_runs.within(5, lambda: None) is None
    assert isinstance(wandb_runs.within(5, lambda: 1 / 0), ZeroDivisionError)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (200, None),
        (401, "does not take the API key, HTTP 401"),
        (500, "answers HTTP 500"),
        (None, "did not answer in 1"),
    ],
)
def test_the_server_is_asked_before_a_run_is_started(monkeypatch, status, told):
    wandb_setup = pytest.importorskip("wandb.sdk.wandb_setup")
    monkeypatch.setattr(wandb_runs, "ASK_SECONDS", 1)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with serving(status) as server:
        place = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(wandb_setup.singleton().settings, "base_url", place)

        cause = wandb_runs.out_of_reach()

    assert cause == told or told in cause


def test_a_logger_that_fails_once_is_asked_no_more(tmp_path):
    calls = []

    def fail(*_):
        calls.append(1)
        raise ConnectionResetError("Connection lost")

    logger = wandb_runs.SteadyWandbLogger(save_dir=tmp_path, offline=True)
    with pytest.warns(UserWarning, match=r"W&B failed \(Connection lost\); the run goes on") as told:
        logger.attempt(fail)
        logger.attempt(fail)
        logger.log_metrics({"loss": 1.0}, step=1)

    assert len(calls) == len(told) == 1


@pytest.mark.slow
def test_control_a_start_that_does_not_ask_first_waits_longer_for_a_server_that_never_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_runs, "out_of_reach", lambda: None)
    monkeypatch.setattr(wandb_runs, "INIT_SECONDS", 90)  # W&B's own

    with serving(None) as server:
        facts, _, _ = trained(tmp_path, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}")

    assert float(facts["start"]) > START_SECONDS

"""A run folder is one process's alone, whoever starts, ends or is killed beside it."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, quick_first
from zfscope import runs
from zfscope.runs import RunFolderLocked, claim, lock, write_record, write_results

HELD, REFUSED, KILLED, TURNED_AWAY = 0, 2, -signal.SIGKILL, 3


class TurnedAway(ValueError):
    """A start that is refused once it has its folder, as one with a wrong value."""


def start(folder, number, fate, begin, numbered=False):
    """A process that claims a folder and writes its number into several files; its fate is its exit code."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        time.sleep(max(0.0, begin - time.monotonic()))
        with claim(folder, numbered=numbered) as place:
            write_record(place, {"config.yaml": f"seed: {number}"})
            if fate == TURNED_AWAY:
                raise TurnedAway
            write_results(place, {}, {"number": number})
            time.sleep(random.Random(number).random() * 0.02)
            if fate == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            same = owner(place)
            code = HELD if same == (number, f"seed: {number}") else 1
    except RunFolderLocked:
        code = REFUSED
    except TurnedAway:
        code = TURNED_AWAY
    finally:
        os._exit(code)


def owner(folder):
    """The numbers of those who wrote its files."""
    return (
        json.loads((folder / "results.json").read_text())["conditions"]["number"],
        (folder / ".hydra/config.yaml").read_text(),
    )


def outcomes(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def start_all(folder, count, fates, spread, **options):
    begin = time.monotonic() + 0.2
    generator = random.Random(count)
    moments = [begin + generator.random() * spread for _ in range(count)]
    numbers = enumerate(zip(moments, fates, strict=True))
    return outcomes([start(folder, number, fate, moment, **options) for number, (moment, fate) in numbers])


# Starts side by side: the few of `make test`, and the hundred that are promised.
COUNTS = quick_first([12, 100], 1)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("spread", [0.0, 0.5], ids=["at once", "one after the other"])
def test_of_starts_side_by_side_in_one_folder_each_holds_it_alone_or_is_refused(
    tmp_path, spread, count, record_property
):
    codes = start_all(tmp_path / "outputs/run", count, [HELD] * count, spread)

    assert set(codes) <= {HELD, REFUSED} and HELD in codes
    number, record = owner(tmp_path / "outputs/run")
    assert codes[number] == HELD and record == f"seed: {number}"
    record_property("cases", count)


def test_control_without_the_lock_starts_side_by_side_mix_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_acquired", lambda folder, key: SimpleNamespace(release=lambda: None))

    # Some found another's number in the folder that they held; on a busy machine they may come one by one.
    assert any(1 in start_all(tmp_path / f"outputs/{turn}", 30, [HELD] * 30, 0.0) for turn in range(5))


@pytest.mark.parametrize("count", COUNTS)
def test_of_starts_some_of_which_are_killed_or_turned_away_no_other_is_disturbed(tmp_path, count, record_property):
    """Those that are turned away remove what they made: the folder comes and goes under the others."""
    fates = [(HELD, KILLED, TURNED_AWAY, TURNED_AWAY)[number % 4] for number in range(count)]
    folder = tmp_path / "outputs/run"

    codes = start_all(folder, count, fates, 0.5)

    assert all(code in (fate, REFUSED) for code, fate in zip(codes, fates, strict=True)), codes
    with claim(folder):  # whoever held it last, it is free now
        pass
    assert not list(folder.rglob("*.tmp"))
    record_property("cases", count)


@pytest.mark.parametrize("count", COUNTS)
def test_starts_that_are_turned_away_leave_no_result_and_hinder_none(tmp_path, count, record_property):
    codes = start_all(tmp_path / "outputs/run", count, [TURNED_AWAY] * count, 0.3)

    assert set(codes) <= {TURNED_AWAY, REFUSED} and TURNED_AWAY in codes
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {".lock", "config.yaml"}
    record_property("cases", count)


@pytest.mark.parametrize("count", COUNTS)
def test_starts_with_a_default_name_have_folders_of_their_own(tmp_path, count, record_property):
    codes = start_all(tmp_path / "outputs/run", count, [HELD] * count, 0.0, numbered=True)

    assert codes == [HELD] * count
    owners = sorted(owner(folder)[0] for folder in (tmp_path / "outputs").iterdir())
    assert owners == list(range(count))
    record_property("cases", count)


def test_the_lock_of_a_killed_run_is_free_also_while_processes_that_it_forked_live(tmp_path):
    """As those that read images, which end some seconds later, or hang."""
    (tmp_path / "run").mkdir()
    ready = os.pipe()
    holder = os.fork()
    if holder == 0:
        with lock(tmp_path / "run"):
            if os.fork() == 0:
                os.write(ready[1], f"{os.getpid()}\n".encode())
                time.sleep(60)
                os._exit(0)
            time.sleep(60)
        os._exit(0)
    forked = int(os.read(ready[0], 20))

    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)

    try:
        with lock(tmp_path / "run"):
            os.kill(forked, 0)  # it is there yet
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_lock_file_that_is_left_is_no_lock(tmp_path):
    (tmp_path / ".lock").write_text("4711\nelsewhere\n")

    with claim(tmp_path) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_gives_no_lock_is_refused_in_one_line(tmp_path, monkeypatch, number):
    """As NFS whose lock server is away."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock._unix.fcntl.flock", fail)

    told = rf"hydra.run.dir=.* cannot be written \({os.strerror(number)}\); choose another"
    with pytest.raises(OSError, match=told), claim(tmp_path / "run"):
        pass


def test_where_there_are_no_locks_at_all_the_lock_is_a_file_and_another_host_is_refused(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("filelock._unix.fcntl.flock", fail)
    (tmp_path / "run").mkdir()

    with pytest.warns(UserWarning, match="flock not supported"), claim(tmp_path / "run"):  # noqa: SIM117
        with pytest.raises(RunFolderLocked), claim(tmp_path / "run"):
            pass


@pytest.mark.slow
def test_of_8_trainings_that_start_in_one_folder_one_runs_and_one_that_is_killed_frees_it(tiny, tmp_path, monkeypatch):
    """The real command; its loaders' processes live on for some seconds when it is killed."""
    monkeypatch.chdir(tmp_path)
    own = [*(override for override in tiny if "num_workers" not in override), "data.num_workers=2"]
    command = [sys.executable, str(ROOT / "train.py"), *own, "evaluate.enabled=false", "trainer.max_epochs=300"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def typed(*arguments):
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    runs = [typed(*command, f"seed={seed}", "hydra.run.dir=run") for seed in range(8)]
    while sum(run.poll() is not None for run in runs) < 7:
        time.sleep(0.1)
    (winner,) = (run for run in runs if run.poll() is None)
    refused = [run.communicate()[1] for run in runs if run is not winner]
    for line in iter(winner.stdout.readline, ""):
        if line.startswith("epoch 2/"):
            break
    winner.kill()
    winner.communicate()
    again = typed(sys.executable, str(ROOT / "train.py"), "resume=run", "trainer.max_epochs=4")
    _, err = again.communicate(timeout=300)

    assert all("the run folder run is locked by another process" in line for line in refused), refused
    assert again.returncode == 0 or "has finished" in err, err
    assert f"seed: {runs.index(winner)}\n" in (tmp_path / "run/.hydra/config.yaml").read_text()
    assert not list((tmp_path / "run").rglob("*.tmp"))

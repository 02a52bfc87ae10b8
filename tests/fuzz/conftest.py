"""Whole commands in this process: all of them runs but the training or the analysis itself."""

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout

import pytest

from tests.conftest import type_command
from tests.fuzz.cases import check_message, everything_in
from zfscope.commands import jobs
from zfscope.runs import write_results


def pretend(config, folder, *_, **__):
    """Work that ends at once."""
    write_results(folder, {}, {})
    return 0.0


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Types a command; what is refused must leave nothing. Returns the refusal, or None where it was taken."""
    place = tmp_path / "typed"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(jobs, "_train", pretend)
    monkeypatch.setattr(jobs, "_analyze", pretend)

    def call(name, *words):
        before, errors = everything_in(place), io.StringIO()
        with redirect_stdout(io.StringIO()), redirect_stderr(errors):
            code = type_command(monkeypatch, name, *words)
        after = everything_in(place)
        made = sorted(after.keys() - before.keys())
        jobs = [json.loads(path.read_text()) for path in made if path.name == "results.json"]
        for path in made:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if code in (0, None):
            return None
        message = errors.getvalue()
        if code == 1 and "-m" in words:  # some jobs of a sweep are refused, in its table; the others ran
            causes = [job["cause"] for job in jobs if job["state"] == "refused"]
            assert message == "" and 0 < len(causes) < len(jobs)
            assert all(job["state"] in ("refused", "finished") for job in jobs), jobs
            for cause in causes:
                check_message(cause)
            return causes[0]
        assert code == 2, f"exit code {code}: {message}"
        assert message.startswith(f"{name}.py: ") and message.endswith("\n"), message
        check_message(message[:-1])
        assert after == before, f"left behind: {sorted(after.keys() - before.keys())}"
        return message

    return call

"""Configs are composed and checked before anything heavy is imported."""

import subprocess
import sys

import pytest

from benchmarks.refusals import CASES, HEAVY
from tests.conftest import ROOT, quick_first


@pytest.mark.parametrize("case", quick_first([name for name in CASES if not name.startswith("-")], 2))
def test_what_needs_no_data_is_refused_before_torch_is_imported(tmp_path, case):
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *CASES[case]],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip

    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    lines = [line for line in answer.stderr.splitlines() if not line.startswith("import time:")]
    assert "hydra" in imported and not imported & set(HEAVY)
    if case != "TAB":
        assert answer.returncode == 2
        assert len(lines) == 1 and lines[0].startswith("train.py: ")
    assert list(tmp_path.iterdir()) == []

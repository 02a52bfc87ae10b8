"""Run one row of docs/reliability.md's table of faults, and write what was measured into it: `make faults ROW=kills`.

A row is a list of tests. What has passed at this commit is kept in ``outputs/faults/ROW.json``, so that a row that was
stopped goes on where it stood.
"""

import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
ROWS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
BEGIN = "<!-- faults -->\n"
END = "<!-- end of faults -->\n"
HEAD = "| fault | owed | ROW | as owed | controls | minutes | measured |\n|---|---|---|---|---|---|---|\n"


class Recorder:
    """Notes each test as it ends; a test may be many cases, which it gives as the property ``cases``."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path, self.record, self.found = path, record, []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what has passed."""
        self.found = [item.nodeid for item in items]
        left = [item for item in items if item.nodeid not in self.record["passed"]]
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = left

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the record anew when a test has ended."""
        if report.passed and report.when == "call":
            cases = dict(report.user_properties).get("cases", 1)
            self.record["passed"][report.nodeid] = cases
            self.record["failed"].pop(report.nodeid, None)
        elif not report.passed:
            cause = "skipped" if report.skipped else str(report.longrepr).strip().splitlines()[-1]
            self.record["failed"][report.nodeid] = cause
        self.record["seconds"] += report.duration
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.record, indent=1), encoding="utf-8")


def main(row: str) -> int:
    """Run what is left of a row and write its line; returns the exit code."""
    if row not in ROWS:
        print(f"ROW={row}: there is no such row; the rows are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    commit = version_of(row)
    path = ROOT / "outputs" / "faults" / f"{row}.json"
    record = {"commit": commit, "passed": {}, "failed": {}, "seconds": 0.0}
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["commit"] == commit:
            record = earlier
            print(f"{len(record['passed'])} tests of this row have passed at {commit}; the others run")
    recorder = Recorder(path, record)
    code = pytest.main(["-m", "", "-q", "-p", "no:xdist", *ROWS[row]["tests"]], plugins=[recorder])
    if code not in (0, 1, 5):  # 5: nothing was left to run
        return int(code)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_line(text, row, line_of(row, record)), encoding="utf-8")
    print(line_of(row, record))
    return int(bool(record["failed"]))


def version_of(row: str) -> str:
    """The last commit that changed the code or the tests of a row, with a + where files differ from it."""
    places = ["src", "callbacks", "conf", *ROWS[row]["tests"]]
    changed = _git("status", "--porcelain", "--", *places)
    return _git("log", "-1", "--format=%h", "--", *places) + ("+" if changed else "")


def line_of(row: str, record: dict[str, Any]) -> str:
    """The line of the table: cases as owed out of all, controls that noticed, minutes, commit and day."""
    controls = {name: cases for name, cases in record["passed"].items() if "::test_control" in name}
    lost = [name for name in record["failed"] if "::test_control" in name]
    good = sum(record["passed"].values()) - sum(controls.values())
    tried = good + len(record["failed"]) - len(lost)
    noticed = f"{len(controls)} / {len(controls) + len(lost)}" if controls or lost else ""
    about = ROWS[row]
    when = f"{date.today()}, {record['commit']}"
    minutes = f"{record['seconds'] / 60:.1f}"
    cells = [about["fault"], about["owed"], f"`{row}`", f"{good:,} / {tried:,}", noticed, minutes, when]
    return f"| {' | '.join(cells)} |\n"


def with_line(text: str, row: str, line: str) -> str:
    """The page with this row's line in place of its earlier one, in the order of the list of rows."""
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {re.search(r"\| `(\w+)` \|", old)[1]: old for old in table.splitlines(keepends=True)[2:]}
    lines[row] = line
    return before + BEGIN + HEAD + "".join(lines[name] for name in ROWS if name in lines) + END + after


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))

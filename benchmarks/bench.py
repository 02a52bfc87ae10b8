"""All benchmarks, one after the other, into benchmarks/results.json and the tables of docs/benchmarks.md.

    python benchmarks/bench.py [--only step growth] [--keep]

Each runs in a process of its own, in turns with its peer, and prints ratios (more is better) or costs (less is better)
of its rounds. One that falls more than a tenth behind its last figure, beyond the spread of both, is named at the end,
and the exit code is 1. ``--keep`` writes nothing.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS, PAGE, PLOT = HERE / "results.json", HERE.parent / "docs/benchmarks.md", HERE.parent / "docs/growth.png"
BEGIN, END = "<!-- written by make bench -->", "<!-- until here -->"
LIBRARIES = ("torch", "torchvision", "lightning", "captum", "scikit-learn", "simplejpeg", "pillow")
CASES = {  # options, and the variables of the environment
    "step": (["--rounds", "5"], {}),
    "loader": (["--cold", "8192"], {"OMP_NUM_THREADS": "1"}),
    "loader with jitter": (["--pca", "0.1"], {"OMP_NUM_THREADS": "1"}),
    "projections": (["--rounds", "2"], {}),
    "occlusion": (["--rounds", "2", "--without", "memory"], {}),
    "ensemble": (["--rounds", "2", "--images", "256", "--views", "ten"], {}),
    "ensemble with one crop": (["--rounds", "3", "--images", "2048", "--views", "one"], {}),
    "watching": (["--rounds", "4"], {}),
    "contrast_norm": (["--threads", "1"], {}),
    "linear_classifiers": (["--c", "0.1"], {"OMP_NUM_THREADS": "1"}),
    "overlap": ([], {}),
    "growth": (["--rounds", "3"], {}),
}
BEHIND = 0.1  # how much a figure may fall


def run(name: str) -> dict[str, Any]:
    """What a benchmark prints, with its command and its seconds."""
    options, variables = CASES[name]
    words = [f"benchmarks/{name.partition(' ')[0]}.py", *options]
    command = " ".join([*(f"{key}={value}" for key, value in variables.items()), "python", *words])
    print(command, flush=True)
    since = time.monotonic()
    done = subprocess.run(
        [sys.executable, *words],
        cwd=HERE.parent,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout[done.stdout.index("{") :])
    return {**found, "command": command, "took_s": round(time.monotonic() - since), "commit": commit()}


def figures(found: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Kind (``ratios`` or ``costs``), label and median with range of every figure of a benchmark."""
    for kind in ("ratios", "costs"):
        for label, values in found.get(kind, {}).items():
            yield kind, label, {"median": statistics.median(values), "low": min(values), "high": max(values)}


def fallen(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Figures of ``now`` that lie more than a tenth behind those of ``before``, beyond the spread of both."""
    told = []
    for name, found in now.items():
        earlier = {(kind, label): figure for kind, label, figure in figures(before.get(name, {}))}
        for kind, label, figure in figures(found):
            if (old := earlier.get((kind, label))) is None:
                continue
            if kind == "ratios":
                behind = figure["median"] < old["median"] * (1 - BEHIND) and figure["high"] < old["low"]
            else:
                behind = figure["median"] > old["median"] * (1 + BEHIND) and figure["low"] > old["high"]
            if behind:
                told.append(f"{name}, {label}: {figure['median']:.3g}, where it was {old['median']:.3g}")
    return told


def machine() -> dict[str, Any]:
    """Where it was measured, and with what."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "date": time.strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """What is measured."""
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return told.stdout.strip()


def tables(report: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    measured: dict[str, list[str]] = {}
    for name, found in report["benchmarks"].items():
        measured.setdefault(found.get("commit", "unknown"), []).append(name)
    commits = "; ".join(f"{commit} ({', '.join(names)})" for commit, names in measured.items())
    lines = [
        BEGIN,
        "",
        f"{about[0].upper()}{about[1:]}.",
        "",
        f"Measured at the commits {commits}.",
        "",
        "| benchmark | times the peer's speed | range |",
        "|---|---|---|",
    ]
    rows: dict[str, list[str]] = {"ratios": [], "costs": []}
    for found in report["benchmarks"].values():
        for kind, label, figure in figures(found):
            spread = f"{figure['low']:.3g} to {figure['high']:.3g}" if figure["low"] != figure["high"] else ""
            rows[kind].append(f"| {label} | {figure['median']:.3g} | {spread} |")
    lines += [*rows["ratios"], ""]
    if rows["costs"]:
        lines += ["| cost (1 is none) | times | range |", "|---|---|---|", *rows["costs"], ""]
    growth = {name: law for found in report["benchmarks"].values() for name, law in found.get("growth", {}).items()}
    if growth:
        lines += ["![How times grow](growth.png)", "", "| time of … with … | grows with the power |", "|---|---|"]
        lines += [f"| {name} | {law['exponent']:.2f} |" for name, law in growth.items() if law["exponent"] is not None]
        draw(growth)
    return "\n".join([*lines, "", END])


def draw(growth: Mapping[str, Any]) -> None:
    """Each series with its power law, in doubly logarithmic axes."""
    figure, axes = plt.subplots(1, len(growth), figsize=(3.2 * len(growth), 3), layout="constrained", squeeze=False)
    for axis, (name, law) in zip(axes[0], growth.items(), strict=True):
        what, _, along = name.rpartition(", ")
        axis.loglog(law["x"], law["seconds"], "o", color="black")
        if law["exponent"] is not None:
            scale = statistics.geometric_mean(law["seconds"]) / statistics.geometric_mean(law["x"]) ** law["exponent"]
            axis.loglog(law["x"], [scale * x ** law["exponent"] for x in law["x"]], color="tab:blue")
        axis.set(title=what, xlabel=along, ylabel="seconds")
        axis.set_xticks(law["x"], [f"{x:g}" for x in law["x"]])
        ends = min(law["seconds"]), max(law["seconds"])
        axis.set_yticks(ends, [f"{seconds:.2g}" for seconds in ends])
        axis.minorticks_off()
        axis.title.set_fontsize(8)
    figure.savefig(PLOT, dpi=110)


def write(report: Mapping[str, Any]) -> None:
    """The figures into results.json and onto the page."""
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page[: page.index(BEGIN)] + tables(report) + page[page.index(END) + len(END) :], encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--keep", action="store_true", help="write nothing")
    options = parser.parse_args()
    earlier = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"benchmarks": {}}
    found, broken, about = {}, [], machine()
    for name in options.only:
        try:
            found[name] = run(name)
        except subprocess.CalledProcessError as error:
            broken.append(f"{name} ended with exit code {error.returncode}; its earlier figures stay")
        report = {"machine": about, "benchmarks": {**earlier["benchmarks"], **found}}
        if not options.keep:  # each as soon as it is known
            write(report)
    told = fallen(earlier["benchmarks"], found)
    print(tables(report))
    for line in [*broken, *(f"fell behind: {line}" for line in told)]:
        print(line)
    return 1 if told or broken else 0


if __name__ == "__main__":
    sys.exit(main())

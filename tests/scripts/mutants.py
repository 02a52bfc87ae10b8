"""Small faults put into the code one at a time: does a test fail?

    python tests/scripts/mutants.py draw --list science --count 60 --seed 0
    make coverage
    python tests/scripts/mutants.py run --list science
    python tests/scripts/mutants.py run --list program --tree OLD --coverage OLD/outputs/coverage

``draw`` takes the mutants from one commit: of the whole ``program``, or of the ``science`` alone, and writes
``mutants.json`` or ``mutants_science.json`` beside this file. ``make coverage`` notes which tests run which lines.
``run`` puts each mutant into a copy of a tree and runs the tests that cover it, the quickest first, until one fails.
Its record is ``outputs/mutants/LIST.json``, and it goes on where it was stopped. A mutant is found again in a later
commit by its statement; where that was reworded, an entry of ``renamed.json`` beside this file says where it is now.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LISTS = {"program": HERE / "mutants.json", "science": HERE / "mutants_science.json"}
# Mutants that change nothing, with the reason: no test can tell them from the program.
EQUIVALENT = {
    6: "an end of 0 epochs counts as none before that is asked",
    39: "means of bytes are never above 255",
    1008: "an epoch without random views is not read",
    1030: "one image is moved and thrown away, instead of none, to see whether an amount is refused",
    1045: "a run without pooled cells ends at the next layer, and adds nothing until then",
    1051: "where nothing bounds the bracket above, Newton's step, which goes up there, lies in it",
    1057: "both ends of an epoch's time are set where it starts",
}
# What computes the numbers and pictures of the paper; the rest of the program serves it.
SCIENCE = re.compile(
    r"src/zfscope/(deconvnet|occlusion|protocols)/.*"
    r"|src/zfscope/networks/(layers|geometry|fields|chain|hooked|preprocessing)\.py"
    r"|src/zfscope/(activations|invariance|correspondence|evolution|diagnostics|evaluation|images)\.py"
    r"|src/zfscope/data/(order|splits|statistics|transforms)\.py"
    r"|src/zfscope/training/classifier\.py|callbacks/filter_renorm\.py"
)
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any", "floor": "ceil"}


def files(tree: Path) -> list[Path]:
    """The program's files; schemas, lazy packages and texts hold little that could be wrong in numbers."""
    paths = [*(tree / "src/zfscope").rglob("*.py"), *(tree / "callbacks").glob("*.py"), tree / "train.py"]
    return sorted(path for path in paths if path.name not in ("__init__.py", "spec.py"))


def variants(node: ast.AST) -> list[tuple[ast.AST, str]]:
    """Copies of an expression with one thing wrong, and the kind of fault."""
    found: list[tuple[ast.AST, str]] = []
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        wrong = ast.Compare(node.left, [COMPARISONS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
        found.append((wrong, "comparison"))
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _is_text(node):
        found.append((ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right), "arithmetic"))
    elif isinstance(node, ast.BoolOp):
        found.append((ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values), "and/or"))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        found.append((node.operand, "not"))
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        found.append((ast.Constant(node.value + 1), "constant"))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ("relu", "clamp", "clamp_min", "abs", "sort", "detach", "clone", "flip"):
            found.append((node.func.value, "call"))
        elif node.func.attr in NAMES:
            function = ast.Attribute(node.func.value, NAMES[node.func.attr], ast.Load())
            found.append((ast.Call(function, node.args, node.keywords), "function"))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
        found.append((ast.Call(ast.Name(NAMES[node.func.id], ast.Load()), node.args, node.keywords), "function"))
    return found


def _is_text(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Constant | ast.JoinedStr) and not isinstance(getattr(part, "value", 0), int | float)
               for part in ast.walk(node))  # fmt: skip


def statements(tree: ast.Module) -> list[tuple[str, ast.stmt]]:
    """Simple statements (and the heads of compound ones) inside functions, with the function's qualified name."""
    found = []

    def walk(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                walk(child, f"{name}.{child.name}".lstrip("."))
            elif isinstance(child, ast.stmt):
                if name:
                    found.append((name, child))
                walk(child, name)

    walk(tree, "")
    return found


def head(statement: ast.stmt) -> list[ast.AST]:
    """The expressions of a statement without those of the statements within it; none of a message or an annotation."""
    if isinstance(statement, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
        return []
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return []
    parts = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
    if isinstance(statement, ast.AnnAssign):
        parts = [statement.value] if statement.value else []
    nodes = []
    waiting = parts
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr | ast.Lambda | ast.stmt | ast.excepthandler | ast.match_case):
            continue
        nodes.append(node)
        waiting += ast.iter_child_nodes(node)
    return nodes


def draw(tree: Path, count: int, seed: int, science: bool = False) -> list[dict]:
    """Mutants spread over rooms: each room gets at least one, the larger ones more; ``science`` counts from 1000."""
    by_room = defaultdict(list)
    for path in files(tree):
        if science and not SCIENCE.fullmatch(path.relative_to(tree).as_posix()):
            continue
        text = path.read_text(encoding="utf-8")
        for function, statement in statements(ast.parse(text)):
            for node in head(statement):
                for wrong, kind in variants(node):
                    by_room[room(path, tree)].append(
                        {
                            "file": path.relative_to(tree).as_posix(),
                            "function": function,
                            "line": node.lineno,
                            "statement": source(statement),
                            "expression": ast.unparse(node),
                            "replacement": ast.unparse(wrong),
                            "kind": kind,
                        }
                    )
    dice = random.Random(seed)
    total = sum(map(len, by_room.values()))
    drawn = []
    for candidates in (by_room[name] for name in sorted(by_room)):
        share = max(1, round(count * len(candidates) / total))
        drawn += dice.sample(candidates, min(share, len(candidates)))
    drawn = dice.sample(drawn, count) if len(drawn) > count else drawn
    drawn.sort(key=lambda mutant: (mutant["file"], mutant["line"]))
    return [{"number": number, **mutant} for number, mutant in enumerate(drawn, 1000 * science)]


def room(path: Path, tree: Path) -> str:
    """A package of the source, or a single module."""
    return path.relative_to(tree).with_suffix("").as_posix()


def source(statement: ast.stmt) -> str:
    """A statement, or the head of a compound one, as one normal form of text."""
    return ast.unparse(statement).splitlines()[0] if hasattr(statement, "body") else ast.unparse(statement)


def locate(tree: Path, mutant: dict) -> tuple[Path, ast.AST, str] | None:
    """The file, the expression and its replacement in a tree; None if the statement is no longer there."""
    return _locate(tree, mutant) or _locate(tree, {**mutant, **renamed().get(str(mutant["number"]), {})})


@cache
def renamed() -> dict[str, dict[str, str]]:
    """By the number of a mutant, where its statement is now; ``gone`` says why there is none any more."""
    return json.loads((HERE / "renamed.json").read_text())


@cache
def _all_statements(tree: Path) -> dict[str, list[tuple[Path, str, ast.stmt]]]:
    """By their text, all statements of a tree's files, with file and function."""
    found = defaultdict(list)
    for path in files(tree):
        for function, statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
            found[source(statement)].append((path, function, statement))
    return found


def _locate(tree: Path, mutant: dict) -> tuple[Path, ast.AST, str] | None:
    matches = []
    for path, function, statement in _all_statements(tree).get(mutant["statement"], ()):
        for node in head(statement):
            if hasattr(node, "lineno") and ast.unparse(node) == mutant["expression"]:
                same = (path.stem == Path(mutant["file"]).stem) + (function == mutant["function"])
                matches.append((same, function.split(".")[-1] == mutant["function"].split(".")[-1], path, node))
    if not matches:
        return None
    *_, path, node = max(matches, key=lambda match: match[:2])
    return path, node, mutant["replacement"]


def mutated(path: Path, node: ast.AST, replacement: str) -> str:
    """The file's text with one expression replaced, in parentheses."""
    lines = path.read_bytes().splitlines(keepends=True)
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    content = path.read_bytes()
    return (content[:start] + f"({replacement})".encode() + content[end:]).decode()


def covering(tree: Path, folder: Path) -> dict:
    """Which tests run which lines, and how long each takes, from what ``make coverage`` left in a folder."""
    import coverage

    durations: dict[str, float] = defaultdict(float)
    for case in (case for report in folder.glob("*.xml") for case in ElementTree.parse(report).iter("testcase")):
        durations[f"{case.get('classname')}.{case.get('name').partition('[')[0]}"] += float(case.get("time"))
    data = coverage.CoverageData(str(folder / "data"))
    data.read()
    modules = {
        test_module(path, tree): path.relative_to(tree).as_posix() for path in (tree / "tests").rglob("test_*.py")
    }

    def test_of(context: str) -> str | None:
        module, _, function = context.partition("|")[0].rpartition(".")
        return f"{modules[module]}::{function}" if module in modules else None

    lines: dict[str, dict[int, set[str]]] = {}
    for file in data.measured_files():
        contexts = data.contexts_by_lineno(file)
        lines[os.path.relpath(file, tree)] = {line: {*map(test_of, names)} - {None} for line, names in contexts.items()}
    return {"lines": lines, "durations": {test_of(name): seconds for name, seconds in durations.items()}}


def test_module(path: Path, tree: Path) -> str:
    """The name under which pytest imports a test file."""
    parts = path.relative_to(tree).with_suffix("").parts
    return ".".join(parts)


def link_callbacks(tree: Path) -> None:
    """Make ``zfscope.callbacks`` importable in a tree that is not installed."""
    link = tree / "src/zfscope/callbacks"
    if not link.exists():
        link.symlink_to("../../callbacks")


def run(tree: Path, mutants: list[dict], covering: dict, out: Path, timeout: int) -> None:
    """Run the covering tests against each mutant; goes on where an earlier call stopped."""
    results = json.loads(out.read_text()) if out.is_file() else {}
    for mutant in mutants:
        key = str(mutant["number"])
        if key in results:
            continue
        place = locate(tree, mutant)
        if place is None:
            results[key] = {"result": "not found"}
        else:
            path, node, replacement = place
            name = path.relative_to(tree).as_posix()
            lines = range(node.lineno, node.end_lineno + 1)
            tests = {test for line in lines for test in covering["lines"].get(name, {}).get(line, [])}
            ordered = sorted(tests, key=lambda test: covering["durations"].get(test, 0))
            results[key] = {"file": name, "line": node.lineno, "tests": len(ordered)}
            results[key] |= try_mutant(tree, path, mutated(path, node, replacement), ordered, timeout)
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(key, mutant["file"], mutant["line"], mutant["expression"], "->", mutant["replacement"], results[key])
    counts: dict[str, int] = defaultdict(int)
    for result in results.values():
        counts[result["result"]] += 1
    print(dict(counts))


def try_mutant(tree: Path, path: Path, text: str, tests: list[str], timeout: int) -> dict:
    """Killed, survived or timed out, in a copy of the tree that holds the mutant."""
    if not tests:
        return {"result": "not covered"}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "tree")
        left_out = (".git", ".venv", ".hypothesis", "outputs", "data_cache", "*.egg-info")
        shutil.copytree(tree, copy, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
        (copy / path.relative_to(tree)).write_text(text, encoding="utf-8")
        link_callbacks(copy)
        printed = Path(folder, "printed.txt")
        # Forked: torch and Lightning, which this process has loaded, take longer than most tests.
        child = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, tests, printed))
        child.start()
        child.join(timeout)
        if child.is_alive():
            os.killpg(child.pid, signal.SIGKILL)
            child.join()
            return {"result": "killed", "by": "timeout"}
        if child.exitcode == 0:
            return {"result": "survived"}
        told = printed.read_text(encoding="utf-8")
        by = re.search(r"^(?:FAILED|ERROR) (\S+)", told, re.M)
        return {"result": "killed", "by": by[1] if by else told[-200:]}


def run_tests(tree: Path, tests: list[str], printed: Path) -> None:
    """Run tests of a tree on its own source, in a process that has imported nothing of another one."""
    os.setsid()
    os.chdir(tree)
    with open(printed, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"PYTHONPATH": f"{tree}/src:{tree}", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path[:0] = [f"{tree}/src", str(tree)]
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["draw", "run"])
    parser.add_argument("--list", choices=LISTS, default="science")
    parser.add_argument("--tree", type=Path, default=HERE.parents[1])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", type=Path, default=Path("outputs/coverage"))
    parser.add_argument("--timeout", type=int, default=600)
    options = parser.parse_args()
    tree, path = options.tree.resolve(), LISTS[options.list]
    if options.action == "draw":
        mutants = draw(tree, options.count, options.seed, options.list == "science")
        path.write_text(json.dumps(mutants, indent=1) + "\n")
        print(len(mutants), "mutants")
    else:
        out = Path("outputs/mutants", f"{options.list}.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        for package in (
            "torch",
            "torchvision",
            "lightning",
            "timm",
            "hydra",
            "hypothesis",
            "matplotlib.pyplot",
            "wandb",
        ):
            with suppress(ImportError):
                import_module(package)
        run(tree, json.loads(path.read_text()), covering(tree, options.coverage), out, options.timeout)


if __name__ == "__main__":
    main()

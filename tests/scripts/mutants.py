"""Small faults put into the code one at a time: does a test fail?

    python tests/scripts/mutants.py draw  --tree OLD --count 60 --seed 0
    python tests/scripts/mutants.py cover --tree TREE --python PYTHON --map COVER.json
    python tests/scripts/mutants.py run   --tree TREE --python PYTHON --map COVER.json --out RESULTS.json

``draw`` takes the mutants from one commit and writes ``mutants.json`` beside this file. ``cover`` runs the tests once
under ``coverage`` (PYTHON needs that package) and notes which tests run which lines. ``run`` puts each mutant into a
copy of a tree and runs the tests that cover it, the quickest first, until one fails. A mutant is found again in a later
commit by its statement; where that was reworded, an entry of ``renamed.json`` beside this file says where it is now.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
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


def draw(tree: Path, count: int, seed: int) -> list[dict]:
    """Mutants spread over rooms: each room gets at least one, the larger ones more."""
    by_room = defaultdict(list)
    for path in files(tree):
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
    return [{"number": number, **mutant} for number, mutant in enumerate(drawn)]


def room(path: Path, tree: Path) -> str:
    """A package of the source, or a single module."""
    return path.relative_to(tree).with_suffix("").as_posix()


def source(statement: ast.stmt) -> str:
    """A statement, or the head of a compound one, as one normal form of text."""
    return ast.unparse(statement).splitlines()[0] if hasattr(statement, "body") else ast.unparse(statement)


def locate(tree: Path, mutant: dict) -> tuple[Path, ast.AST, str] | None:
    """The file, the expression and its replacement in a tree; None if the statement is no longer there."""
    renamed = json.loads((HERE / "renamed.json").read_text()) if (HERE / "renamed.json").is_file() else {}
    return _locate(tree, mutant) or _locate(tree, {**mutant, **renamed.get(str(mutant["number"]), {})})


def _locate(tree: Path, mutant: dict) -> tuple[Path, ast.AST, str] | None:
    matches = []
    for path in files(tree):
        for function, statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
            if source(statement) != mutant["statement"]:
                continue
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


def cover(tree: Path, python: str) -> dict:
    """Which tests run which lines, and how long each takes, by one run of the tests under ``coverage``."""
    link_callbacks(tree)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "rc")
        settings.write_text("[run]\ndynamic_context = test_function\nsource = src\n    callbacks\n")
        command = [python, "-m", "coverage", "run", f"--rcfile={settings}", f"--data-file={folder}/data"]
        command += ["-m", "pytest", "-q", "--durations=0", "--durations-min=0.001", "-p", "no:cacheprovider"]
        answer = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True)
        print(answer.stdout[-300:])
        durations: dict[str, float] = defaultdict(float)
        for seconds, test in re.findall(r"^([\d.]+)s (?:call|setup)\s+(\S+?)(?:\[.*)?$", answer.stdout, re.M):
            durations[test] += float(seconds)
        program = (
            "import coverage, json, sys; data = coverage.CoverageData(sys.argv[1]); data.read();"
            "print(json.dumps({f: data.contexts_by_lineno(f) for f in data.measured_files()}))"
        )
        answer = subprocess.run([python, "-c", program, f"{folder}/data"], capture_output=True, text=True, check=True)
    modules = {test_module(path, tree): path for path in (tree / "tests").rglob("test_*.py")}
    lines: dict[str, dict[str, list[str]]] = {}
    for file, contexts in json.loads(answer.stdout).items():
        name = os.path.relpath(file, tree)
        lines[name] = {}
        for line, names in contexts.items():
            tests = set()
            for name_of_test in filter(None, names):
                module, _, function = name_of_test.rpartition(".")
                path = modules.get(module) or modules.get(module.removeprefix("tests."))
                if path is not None:
                    tests.add(f"{path.relative_to(tree).as_posix()}::{function}")
            lines[name][line] = sorted(tests)
    return {"lines": lines, "durations": durations}


def test_module(path: Path, tree: Path) -> str:
    """The name under which pytest imports a test file."""
    parts = path.relative_to(tree / "tests").with_suffix("").parts
    return ".".join(parts)


def link_callbacks(tree: Path) -> None:
    """Make ``zfscope.callbacks`` importable in a tree that is not installed."""
    link = tree / "src/zfscope/callbacks"
    if not link.exists():
        link.symlink_to("../../callbacks")


def environment(tree: Path) -> dict[str, str]:
    """The variables of a run: the tree's own source first."""
    return {**os.environ, "PYTHONPATH": f"{tree}/src:{tree}", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(tree: Path, python: str, mutants: list[dict], covering: dict, out: Path, timeout: int) -> None:
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
            tests = {test for line in lines for test in covering["lines"].get(name, {}).get(str(line), [])}
            ordered = sorted(tests, key=lambda test: covering["durations"].get(test, 0))
            results[key] = {"file": name, "line": node.lineno, "tests": len(ordered)}
            results[key] |= try_mutant(tree, python, path, mutated(path, node, replacement), ordered, timeout)
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(key, mutant["file"], mutant["line"], mutant["expression"], "->", mutant["replacement"], results[key])
    counts: dict[str, int] = defaultdict(int)
    for result in results.values():
        counts[result["result"]] += 1
    print(dict(counts))


def try_mutant(tree: Path, python: str, path: Path, text: str, tests: list[str], timeout: int) -> dict:
    """Killed, survived or timed out, in a copy of the tree that holds the mutant."""
    if not tests:
        return {"result": "not covered"}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "tree")
        shutil.copytree(
            tree,
            copy,
            symlinks=True,
            ignore=shutil.ignore_patterns(".git", ".venv", "outputs", "data_cache", "*.egg-info"),
        )
        (copy / path.relative_to(tree)).write_text(text, encoding="utf-8")
        link_callbacks(copy)
        command = [python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            answer = subprocess.run(
                command, cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return {"result": "killed", "by": "timeout"}
        if answer.returncode == 0:
            return {"result": "survived"}
        by = re.search(r"^(?:FAILED|ERROR) (\S+)", answer.stdout, re.M)
        return {"result": "killed", "by": by[1] if by else answer.stdout[-200:]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["draw", "cover", "run"])
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--map", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--timeout", type=int, default=400)
    options = parser.parse_args()
    tree = options.tree.resolve()
    if options.action == "draw":
        mutants = draw(tree, options.count, options.seed)
        (HERE / "mutants.json").write_text(json.dumps(mutants, indent=1) + "\n")
        print(len(mutants), "mutants")
    elif options.action == "cover":
        options.map.write_text(json.dumps(cover(tree, options.python)))
    else:
        mutants = json.loads((HERE / "mutants.json").read_text())
        run(tree, options.python, mutants, json.loads(options.map.read_text()), options.out, options.timeout)


if __name__ == "__main__":
    main()

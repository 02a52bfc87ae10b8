"""The rooms of the house and the arrows between them, read from the files: what the import test and the picture use."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

DOORS = ("train.py", "analyze.py", "timm_models")  # from outside; nothing imports them
# From the top; a room imports only from floors below its own.
FLOORS = (
    DOORS,
    ("commands",),
    ("analyses",),
    ("protocols",),
    ("training",),
    ("evaluation", "callbacks"),
    ("figures", "atlas"),
    ("report", "occlusion", "correspondence", "evolution"),
    ("data", "deconvnet", "invariance", "diagnostics", "embedding"),
    ("networks",),
    ("schema", "console", "runs", "activations", "images"),
    ("files",),
    ("stops", "secrets"),
)


def sources(root: Path = ROOT) -> dict[Path, str]:
    """Every file of the program with its room: a file or package of ``src/zfscope``, ``callbacks``, an entry point."""
    rooms = {root / name: name for name in ("train.py", "analyze.py")}
    rooms |= {path: "callbacks" for path in sorted((root / "callbacks").rglob("*.py"))}
    package = root / "src" / "zfscope"
    for path in sorted(package.rglob("*.py")):
        rooms[path] = path.relative_to(package).parts[0].removesuffix(".py")
    return rooms


def imported_modules(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it: also within functions and under ``TYPE_CHECKING``."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("zfscope."):
            modules.add(node.value)  # the homes of what a package loads at first use
    return modules


def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """By room, the other rooms that it imports; the package's own ``__init__`` is no room."""
    rooms = sources(root)
    result: dict[str, set[str]] = {room: set() for room in rooms.values() if room != "__init__"}
    for path, room in rooms.items():
        if room == "__init__":
            continue
        for module in imported_modules(path):
            parts = module.split(".")
            target = parts[1] if parts[0] == "zfscope" and len(parts) > 1 else f"{parts[0]}.py"
            if target in result and target != room:
                result[room].add(target)
    return result

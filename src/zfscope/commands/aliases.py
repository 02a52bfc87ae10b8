"""YAML aliases, which a few hundred bytes may nest to more values than memory holds."""

from pathlib import Path

import yaml

MOST_VALUES = 100_000  # of one file, its aliases written out; the largest of conf/ has a few hundred


def check_aliases(path: Path) -> None:
    """Refuse a YAML file whose aliases would make it grow beyond ``MOST_VALUES``; it is not written out for that.

    Raises:
        ValueError: With the file, or for one whose aliases contain themselves.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "*" not in text or "&" not in text:
            return
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return  # who reads it tells
    sizes: dict[int, int | None] = {}  # of nodes by identity, an alias being its anchor's; None while one is counted

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
            sizes[id(node)] = 1 + sum(map(size, children))
        if sizes[id(node)] is None:
            raise ValueError(f"{path}: an alias contains itself; mend or remove the file")
        return sizes[id(node)]

    if root is not None and (values := size(root)) > MOST_VALUES:
        raise ValueError(f"{path}: its aliases make {values:,} values of it; mend or remove the file")

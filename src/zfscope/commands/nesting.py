"""What nests without end: brackets, YAML and its aliases; a few hundred bytes may nest to more than memory holds.

Parsers of overrides, of YAML and of interpolations call themselves for each level, until Python or the process ends.
"""

import re
from pathlib import Path

import yaml

DEEPEST = 30  # levels of brackets and of YAML; conf/ has 6
MOST_VALUES = 100_000  # of one file, its aliases written out; the largest of conf/ has a few hundred


def check_brackets(text: str, place: str) -> None:
    """Refuse text with more than ``DEEPEST`` open brackets; ``place`` says in the message where it stands.

    Raises:
        ValueError: With the place.
    """
    depth = 0
    for bracket in re.findall(r"[\[\](){}]", text):
        depth += 1 if bracket in "[({" else -1
        if depth > DEEPEST:
            raise ValueError(f"{place} nests brackets deeper than {DEEPEST} levels; write it shorter")


def check_yaml(path: Path) -> None:
    """Refuse a YAML file that nests too deeply, or whose aliases would make it grow beyond ``MOST_VALUES``.

    It is not written out for that. A file that cannot be read is left to who reads it.

    Raises:
        ValueError: With the file, also for one whose aliases contain themselves.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth, has_aliases = 0, False
    try:
        text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, Loader=loader):  # one by one: nothing is built yet
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"{path} nests deeper than {DEEPEST} levels; mend or remove the file")
            has_aliases |= isinstance(event, yaml.AliasEvent)
            if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
                check_brackets(event.value, str(path))
        root = yaml.compose(text, Loader=loader) if has_aliases else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
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

"""Draw the rooms by floors, with the arrows of their imports, to docs/rooms.svg.

    python tests/scripts/draw_rooms.py            draw
    python tests/scripts/draw_rooms.py --check    exit with 1 if docs/rooms.svg shows other rooms or arrows

An arrow that follows from others is left out: where ``a`` imports ``b`` and ``b`` imports ``c``, no arrow leads from
``a`` to ``c``. Resting the pointer on a room shows all that it imports.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.rooms import FLOORS, arrows, sources  # noqa: E402

PICTURE = ROOT / "docs" / "rooms.svg"
BOX, FLOOR, MARGIN = 34, 90, 24  # pixels: height of a box, from floor to floor, around all
GAP, LANE = 22, 14  # pixels beside a box, and between arrows that pass a floor
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a8519c", "#7a5c00", "#2b8cbe", "#5d3a9b", "#c17d00", "#555555", "#b2182b")

Item = str | tuple[str, str, int]  # a room, or an arrow (from, to) where it passes a floor


def rooms(root: Path = ROOT) -> dict[str, set[str]]:
    """By room, the other rooms that it imports."""
    return arrows(root)


def floors(names: Iterable[str]) -> list[list[str]]:
    """These rooms floor by floor from the top.

    Raises:
        ValueError: If a room stands on no floor.
    """
    names = set(names)
    homeless = names - {room for floor in FLOORS for room in floor}
    if homeless:
        raise ValueError(f"on no floor of tests/rooms.py: {', '.join(sorted(homeless))}")
    return [[room for room in floor if room in names] for floor in FLOORS if names & set(floor)]


def needed(imports: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows ``(from, to)`` that follow from no others."""

    def collect(room: str, below: set[str]) -> set[str]:
        for other in imports[room] - below:
            below.add(other)
            collect(other, below)
        return below

    below = {room: collect(room, set()) for room in imports}
    return [
        (room, other)
        for room in imports
        for other in sorted(imports[room])
        if not any(other in below[between] for between in imports[room] - {other})
    ]


def chains(lines: Sequence[tuple[str, str]], level: Mapping[str, int]) -> list[list[Item]]:
    """Each arrow as what it meets floor by floor: a room, places on the floors that it passes, a room."""
    return [
        [start, *((start, end, number) for number in range(level[start] + 1, level[end])), end] for start, end in lines
    ]


def width_of(item: Item) -> float:
    """Pixels that an item takes on its floor."""
    return 8 * len(item) + 44 if isinstance(item, str) else 2


def arranged(storeys: list[list[str]], paths: list[list[Item]]) -> tuple[list[list[Item]], dict[Item, float]]:
    """The items of each floor from left to right, and the middle of each in pixels.

    Sweeping down and up by turns, each item moves to the mean of those that it is joined with one floor further; what
    would overlap is pushed apart.
    """
    rows: list[list[Item]] = [list(floor) for floor in storeys]
    above: dict[Item, list[Item]] = {}
    below: dict[Item, list[Item]] = {}
    for path in paths:
        for upper, lower in pairwise(path):
            above.setdefault(lower, []).append(upper)
            below.setdefault(upper, []).append(lower)
        for item in path[1:-1]:
            rows[item[2]].append(item)
    middle = {item: 60.0 * number for row in rows for number, item in enumerate(row)}
    for sweep in range(60):
        joined, order = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for row in order:
            wishes = {}
            for item in row:
                ends = joined.get(item) or [item]
                wishes[item] = sum(middle[end] for end in ends) / len(ends)
            row.sort(key=wishes.__getitem__)
            middle |= pushed_apart(row, wishes)
    shift = MARGIN - min(middle[item] - width_of(item) / 2 for item in middle)
    return rows, {item: x + shift for item, x in middle.items()}


def pushed_apart(row: Sequence[Item], wishes: Mapping[Item, float]) -> dict[Item, float]:
    """Places nearest to those wished for (least squares) at which nothing overlaps: pool adjacent violators."""
    offsets, offset = [], 0.0
    for number, item in enumerate(row):
        if number:
            lone = isinstance(item, str) or isinstance(row[number - 1], str)
            offset += (width_of(row[number - 1]) + width_of(item)) / 2 + (GAP if lone else LANE)
        offsets.append(offset)
    blocks: list[list[float]] = []  # sum and count
    for item, offset in zip(row, offsets, strict=True):
        blocks.append([wishes[item] - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    bases = [total / count for total, count in blocks for _ in range(int(count))]
    return {item: base + offset for item, base, offset in zip(row, bases, offsets, strict=True)}


def ports(paths: list[list[Item]], places: Mapping[Item, float], end: int) -> dict[int, float]:
    """Where each path leaves its first room (``end`` 0) or reaches its last (-1): side by side."""
    result = {}
    for room in {path[end] for path in paths}:
        meeting = [number for number, path in enumerate(paths) if path[end] == room]
        meeting.sort(key=lambda number: places[paths[number][1 if end == 0 else -2]])
        step = min(18.0, (width_of(room) - 20) / max(1, len(meeting) - 1))
        for position, number in enumerate(meeting):
            result[number] = places[room] + step * (position - (len(meeting) - 1) / 2)
    return result


def draw(root: Path = ROOT) -> str:
    """The picture as SVG.

    Raises:
        ValueError: If a room stands on no floor, or imports one that is no lower.
    """
    imports = rooms(root)
    storeys = floors(imports)
    level = {room: number for number, floor in enumerate(storeys) for room in floor}
    order = [room for floor in storeys for room in floor]
    upwards = [f"{room} -> {other}" for room in order for other in imports[room] if level[other] <= level[room]]
    if upwards:
        raise ValueError(f"arrows must point down, but these do not: {', '.join(upwards)}")
    lines = sorted(needed(imports), key=lambda line: (order.index(line[0]), order.index(line[1])))
    paths = chains(lines, level)
    _, places = arranged(storeys, paths)
    top = [MARGIN + FLOOR * number for number in range(len(storeys))]
    starts, ends = ports(paths, places, 0), ports(paths, places, -1)

    drawing = []
    for number, path in enumerate(paths):
        xs = [starts[number], *(places[item] for item in path[1:-1]), ends[number]]
        first = level[path[0]]
        pen = f"M{xs[0]:.0f} {top[first] + BOX}"
        for step, (x0, x1) in enumerate(pairwise(xs), first):
            y0, y1 = top[step] + BOX, top[step + 1] - (7 if step + 1 == level[path[-1]] else 0)
            half = (y0 + y1) / 2
            pen += f" C{x0:.0f} {half:.0f} {x1:.0f} {half:.0f} {x1:.0f} {y1}"
            if step + 1 < level[path[-1]]:
                pen += f" V{top[step + 1] + BOX}"
        colour = COLOURS[order.index(path[0]) % len(COLOURS)]
        tip = top[level[path[-1]]]
        drawing.append(f'<path d="{pen}" stroke="{colour}"/>')
        drawing.append(f'<path d="M{xs[-1]:.0f} {tip} l-4 -8 h8 z" class="head" style="fill: {colour}"/>')
    labels = labels_of(root)
    for room, number in level.items():
        imported = ", ".join(sorted(imports[room], key=order.index)) or "no other room"
        x, colour = places[room] - width_of(room) / 2, COLOURS[order.index(room) % len(COLOURS)]
        drawing.append(
            f"<g><title>{escape(labels[room])} imports {escape(imported)}</title>"
            f'<rect x="{x:.0f}" y="{top[number]}" width="{width_of(room):.0f}" height="{BOX}" rx="6" class="room" '
            f'stroke="{colour}"/><text x="{places[room]:.0f}" y="{top[number] + 22}">{escape(labels[room])}</text></g>'
        )
    legend = (
        "name/ is a folder and name.py a file of src/zfscope; callbacks/, train.py and analyze.py lie at the root.",
        "An arrow says: imports. It has the colour of the room that it comes from. All arrows point down.",
        f"Drawn are those {len(lines)} of {sum(map(len, imports.values()))} arrows that do not follow from others.",
    )
    foot = top[-1] + BOX + 36
    drawing += [
        f'<text x="{MARGIN}" y="{foot + 18 * number}" class="legend">{line}</text>'
        for number, line in enumerate(legend)
    ]
    width = max(max(places[item] + width_of(item) / 2 for item in places) + MARGIN, 7 * len(legend[0]) + MARGIN)
    height = foot + 18 * len(legend) + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" role="img" aria-label="The rooms of zfscope by floors, with the arrows of their imports">\n'
        "<style>text { font: 14px system-ui, sans-serif; text-anchor: middle; fill: #111 } "
        "text.legend { font-size: 13px; text-anchor: start; fill: #444 } "
        ".room { fill: #faf7ef; stroke-width: 1.6 } path { fill: none; stroke-width: 1.6 } "
        "path.head { stroke: none }</style>\n"
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(drawing) + "\n</svg>\n"
    )


def labels_of(root: Path) -> dict[str, str]:
    """What stands in a room's box: its name as a file or folder."""
    labels = {}
    for path, room in sources(root).items():
        inside = path.parent.name == room
        labels[room] = room if room.endswith(".py") else f"{room}/" if inside or room in labels else f"{room}.py"
    return labels


def main() -> int:
    """Draw, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if docs/rooms.svg is stale")
    if not parser.parse_args().check:
        PICTURE.write_text(draw(), encoding="utf-8")
        return 0
    if PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == draw():
        return 0
    print(f"{PICTURE.relative_to(ROOT)} is stale; run: python tests/scripts/draw_rooms.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())

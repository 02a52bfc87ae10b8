"""Shapes and parts that the phantom's objects are made of, as polygons."""

import numpy as np

Colour = tuple[int, int, int]
Shape = tuple[np.ndarray, Colour]  # corners (K, 2) as x to the right, y down; colour
Part = list[Shape]


def _circle(corners: int) -> np.ndarray:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_CIRCLE = _circle(28)


def oval(x: float, y: float, width: float, height: float, colour: Colour, angle: float = 0.0) -> Shape:
    """An ellipse of half axes ``width`` and ``height``; the angle is clockwise, in radians."""
    return _rotated(_CIRCLE * (width, height), angle) + (x, y), colour


def disc(x: float, y: float, width: float, height: float, colour: Colour, angle: float = 0.0) -> Part:
    """An ellipse with a dark edge."""
    edge = 0.05
    return [oval(x, y, width, height, darker(colour), angle), oval(x, y, width - edge, height - edge, colour, angle)]


def bar(x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour) -> Shape:
    """A straight stroke from one point to another."""
    along = np.array([x1 - x0, y1 - y0])
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) * (width / 2)
    ends = np.array([[x0, y0], [x1, y1]])
    return np.concatenate([ends + across, (ends - across)[::-1]]), colour


def plate(x0: float, y0: float, x1: float, y1: float, colour: Colour, lean: float = 0.0) -> Part:
    """A box with a dark edge; ``lean`` narrows its upper side."""
    outer = np.array([[x0 + lean, y0], [x1 - lean, y0], [x1, y1], [x0, y1]])
    middle = outer.mean(axis=0)
    inner = middle + (outer - middle) * (1 - 0.1 / np.ptp(outer, axis=0))
    return [(outer, darker(colour)), (inner, colour)]


def eye(x: float, y: float, size: float, iris: Colour) -> Part:
    """Dark edge, white, iris, pupil and a glint; ``size`` is half its width."""
    return [
        oval(x, y, size, 0.85 * size, (35, 25, 25)),
        oval(x, y, 0.85 * size, 0.7 * size, (240, 238, 232)),
        oval(x, y, 0.58 * size, 0.58 * size, iris),
        oval(x, y, 0.32 * size, 0.32 * size, (15, 12, 15)),
        oval(x - 0.18 * size, y - 0.2 * size, 0.13 * size, 0.13 * size, (255, 255, 255)),
    ]


def wheel(x: float, y: float, size: float, rim: Colour, random: np.random.Generator) -> Part:
    """A tyre, a rim and spokes."""
    first = random.uniform(0, np.pi)
    spokes = [first + k * np.pi / 3 for k in range(3)]
    return [
        oval(x, y, size, size, (35, 34, 38)),
        oval(x, y, 0.76 * size, 0.76 * size, rim),
        *(
            bar(
                x - 0.76 * size * np.cos(a),
                y - 0.76 * size * np.sin(a),
                x + 0.76 * size * np.cos(a),
                y + 0.76 * size * np.sin(a),
                0.1 * size,
                (60, 58, 62),
            )
            for a in spokes
        ),
        oval(x, y, 0.2 * size, 0.2 * size, (45, 44, 48)),
    ]


def leaf(x: float, y: float, angle: float, length: float, width: float, colour: Colour) -> Part:
    """An ear, a petal, a wing or a fin: an oval that starts at a point and grows in a direction."""
    along = direction(angle)
    middle = np.array([x, y]) + along * length / 2
    return [
        *disc(*middle, length / 2, width / 2, colour, angle),
        oval(*(middle + 0.05 * length * along), 0.3 * length, 0.26 * width, lighter(colour), angle),
    ]


def spike(x: float, y: float, angle: float, length: float, width: float, colour: Colour) -> Part:
    """An ear, a tuft, a beak or a tail: a triangle on a base at a point, its tip in a direction."""
    triangle = np.array([[0.0, -width / 2], [length, 0.0], [0.0, width / 2]])
    middle = np.array([length / 3, 0.0])
    return [
        (_rotated(triangle, angle) + (x, y), darker(colour)),
        (_rotated((triangle - middle) * 0.82 + middle, angle) + (x, y), colour),
        (_rotated((triangle - middle) * 0.45 + middle, angle) + (x, y), lighter(colour)),
    ]


def mouth(x: float, y: float, width: float, bend: float, colour: Colour) -> Part:
    """A curved stroke, thick in its middle."""
    t = np.linspace(-1, 1, 9)
    upper = np.stack([x + width * t, y + bend * (1 - t**2)], axis=1)
    lower = np.stack([x + width * t, y + bend * (1 - t**2) + 0.09 * (1.05 - t**2)], axis=1)
    return [(np.concatenate([upper, lower[::-1]]), colour)]


def _rotated(points: np.ndarray, angle: float) -> np.ndarray:
    x, y = direction(angle)
    return points @ np.array([[x, y], [-y, x]])


def random_colour(random: np.random.Generator) -> Colour:
    """Any colour that is neither very dark nor very pale; all classes draw from the same ones."""
    grey = random.uniform(95, 205)
    return tuple((grey + random.uniform(-1, 1, 3) * 50).clip(0, 255).astype(int).tolist())


def darker(colour: Colour) -> Colour:
    """Half as bright."""
    return tuple(int(0.5 * value) for value in colour)


def lighter(colour: Colour) -> Colour:
    """Almost half of the way to white."""
    return tuple(int(value + 0.45 * (255 - value)) for value in colour)


def direction(angle: float) -> np.ndarray:
    """Unit vector ``(x, y)``; the angle is clockwise from the right, in radians."""
    return np.array([np.cos(angle), np.sin(angle)])

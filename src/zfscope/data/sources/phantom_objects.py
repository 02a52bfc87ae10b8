"""The ten classes of the phantom: which parts each object has, and where."""

from collections.abc import Callable

import numpy as np

from zfscope.data.sources.phantom_shapes import (
    Part,
    bar,
    darker,
    direction,
    disc,
    eye,
    leaf,
    lighter,
    mouth,
    oval,
    plate,
    random_colour,
    spike,
    wheel,
)


def _jitter(random: np.random.Generator) -> Callable[[float], float]:
    return lambda spread=0.05: float(random.uniform(-spread, spread))


def _face(random: np.random.Generator) -> dict[str, Part]:
    j, skin, iris = _jitter(random), random_colour(random), random_colour(random)
    eyes, size, brow = -0.22 + j(), 0.19 + j(0.03), darker(random_colour(random))
    lips = (150 + int(j(50)), 45, 50)
    return {
        "head": disc(0, 0, 0.74 + j(), 0.95, skin),
        "right_brow": [bar(-0.5, eyes - 0.27 + j(), -0.14, eyes - 0.29 + j(), 0.08, brow)],
        "left_brow": [bar(0.5, eyes - 0.27 + j(), 0.14, eyes - 0.29 + j(), 0.08, brow)],
        "right_eye": eye(-0.32 + j(), eyes, size, iris),
        "left_eye": eye(0.32 + j(), eyes, size, iris),
        "nose": spike(0, 0.25 + j(), -np.pi / 2, 0.36 + j(), 0.28 + j(), darker(skin)),
        "mouth": mouth(0, 0.52 + j(), 0.32 + j(), 0.1 + j(0.12), lips),
    }


def _dog(random: np.random.Generator) -> dict[str, Part]:
    j, fur, ear, iris = _jitter(random), random_colour(random), random_colour(random), random_colour(random)
    eyes, size = -0.2 + j(), 0.18 + j(0.03)
    droop = 0.35 + j(0.15)
    return {
        "head": disc(0, 0, 0.7 + j(), 0.8, fur),
        "right_ear": leaf(-0.5, -0.55, np.pi / 2 + droop, 1.05 + j(0.15), 0.42 + j(), ear),
        "left_ear": leaf(0.5, -0.55, np.pi / 2 - droop, 1.05 + j(0.15), 0.42 + j(), ear),
        "right_eye": eye(-0.28 + j(), eyes, size, iris),
        "left_eye": eye(0.28 + j(), eyes, size, iris),
        "muzzle": disc(0, 0.37, 0.36 + j(), 0.3 + j(), lighter(fur)),
        "nose": [oval(0, 0.25 + j(), 0.16 + j(0.03), 0.11, (40, 30, 32))],
        "mouth": mouth(0, 0.47 + j(0.03), 0.22 + j(), 0.07, (90, 40, 45)),
    }


def _cat(random: np.random.Generator) -> dict[str, Part]:
    j, fur, ear, iris = _jitter(random), random_colour(random), random_colour(random), random_colour(random)
    eyes, size, whiskers = -0.1 + j(), 0.2 + j(0.03), darker(random_colour(random))
    spread = 0.3 + j(0.15)
    return {
        "right_ear": spike(-0.4, -0.4, -np.pi / 2 - spread, 0.72 + j(0.1), 0.55 + j(), ear),
        "left_ear": spike(0.4, -0.4, -np.pi / 2 + spread, 0.72 + j(0.1), 0.55 + j(), ear),
        "head": disc(0, 0.08, 0.78 + j(), 0.7, fur),
        "right_eye": eye(-0.32 + j(), eyes, size, iris),
        "left_eye": eye(0.32 + j(), eyes, size, iris),
        "right_whiskers": [bar(-0.2, 0.32, -0.95, y + j(), 0.045, whiskers) for y in (0.2, 0.42)],
        "left_whiskers": [bar(0.2, 0.32, 0.95, y + j(), 0.045, whiskers) for y in (0.2, 0.42)],
        "nose": spike(0, 0.15, np.pi / 2, 0.17, 0.24 + j(), (165, 85, 95)),
        "mouth": mouth(0, 0.42 + j(0.03), 0.2 + j(), 0.07, (90, 40, 45)),
    }


def _owl(random: np.random.Generator) -> dict[str, Part]:
    j, body, wing, iris = _jitter(random), random_colour(random), random_colour(random), random_colour(random)
    eyes, size, beak = -0.38 + j(), 0.22 + j(0.03), random_colour(random)
    return {
        "right_tuft": spike(-0.38, -0.68, -np.pi / 2 - 0.35 + j(0.15), 0.42 + j(), 0.34 + j(), body),
        "left_tuft": spike(0.38, -0.68, -np.pi / 2 + 0.35 + j(0.15), 0.42 + j(), 0.34 + j(), body),
        "body": disc(0, 0.05, 0.66 + j(), 0.92, body),
        "belly": disc(0, 0.48, 0.38 + j(), 0.42, lighter(body)),
        "right_wing": leaf(-0.56, -0.15, np.pi / 2 + 0.05 + j(0.1), 0.95 + j(0.1), 0.36 + j(), wing),
        "left_wing": leaf(0.56, -0.15, np.pi / 2 - 0.05 + j(0.1), 0.95 + j(0.1), 0.36 + j(), wing),
        "right_eye": eye(-0.27 + j(0.03), eyes, size, iris),
        "left_eye": eye(0.27 + j(0.03), eyes, size, iris),
        "beak": spike(0, -0.28 + j(0.03), np.pi / 2, 0.36 + j(), 0.22 + j(0.03), beak),
    }


def _rabbit(random: np.random.Generator) -> dict[str, Part]:
    j, fur, ear, iris = _jitter(random), random_colour(random), random_colour(random), random_colour(random)
    eyes, size = 0.25 + j(), 0.17 + j(0.03)
    spread = 0.2 + j(0.18)
    return {
        "right_ear": leaf(-0.24, 0.0, -np.pi / 2 - spread, 1.1 + j(0.1), 0.36 + j(), ear),
        "left_ear": leaf(0.24, 0.0, -np.pi / 2 + spread, 1.1 + j(0.1), 0.36 + j(), ear),
        "head": disc(0, 0.38, 0.64 + j(), 0.6, fur),
        "right_eye": eye(-0.28 + j(), eyes, size, iris),
        "left_eye": eye(0.28 + j(), eyes, size, iris),
        "nose": spike(0, 0.45, np.pi / 2, 0.15, 0.22 + j(0.03), (165, 85, 95)),
        "mouth": mouth(0, 0.64, 0.18 + j(), 0.06, (90, 40, 45)),
        "teeth": plate(-0.1, 0.72, 0.1, 0.9, (235, 232, 220)),
    }


def _fish(random: np.random.Generator) -> dict[str, Part]:
    j, body, fin, iris = _jitter(random), random_colour(random), random_colour(random), random_colour(random)
    parts = {
        "tail": spike(0.98, 0.0, np.pi + j(0.2), 0.6, 0.75 + j(0.1), fin),
        "upper_fin": spike(0.05 + j(), -0.3, -np.pi / 2 + 0.4 + j(0.2), 0.45 + j(), 0.5 + j(), fin),
        "body": disc(-0.15, 0, 0.8, 0.48 + j(0.08), body),
        "side_fin": leaf(-0.05, 0.1 + j(), 0.45 + j(0.3), 0.45 + j(), 0.26 + j(), fin),
        "eye": eye(-0.55 + j(0.03), -0.12 + j(0.03), 0.17 + j(0.03), iris),
        "mouth": mouth(-0.74, 0.13, 0.13, 0.05, (120, 45, 50)),
    }
    return _mirrored(parts, random)


def _car(random: np.random.Generator) -> dict[str, Part]:
    j, body, roof, rim = _jitter(random), random_colour(random), random_colour(random), random_colour(random)
    glass, size, middle = lighter(random_colour(random)), 0.25 + j(0.03), j(0.12)
    parts = {
        "cabin": plate(-0.55 + middle, -0.5 + j(), 0.5 + middle, 0.02, body, lean=0.18),
        "window": plate(-0.36 + middle, -0.39, 0.31 + middle, -0.05, glass, lean=0.1),
        "body": plate(-1, -0.02, 1, 0.42, roof if random.random() < 0.3 else body, lean=0.05),
        "lamp": disc(-0.87, 0.12, 0.11, 0.1, (235, 225, 160)),
        "front_wheel": wheel(-0.55 + j(), 0.42, size, rim, random),
        "rear_wheel": wheel(0.55 + j(), 0.42, size, rim, random),
    }
    return _mirrored(parts, random)


def _bicycle(random: np.random.Generator) -> dict[str, Part]:
    j, frame, rim = _jitter(random), darker(random_colour(random)), lighter(random_colour(random))
    size = 0.42 + j(0.04)
    crank, seat, head = (-0.02 + j(), 0.3), (0.2 + j(), -0.38 + j()), (-0.42, -0.42 + j())
    joints = [(*seat, *crank), (*crank, *head), (*head, *seat), (*crank, 0.56, 0.3), (*seat, 0.56, 0.3)]
    parts = {
        "front_wheel": wheel(-0.58, 0.3, size, rim, random),
        "rear_wheel": wheel(0.56, 0.3, size, rim, random),
        "frame": [bar(*ends, 0.085, frame) for ends in joints],
        "fork": [bar(*head, -0.58, 0.3, 0.085, frame), bar(*head, head[0] + 0.05, -0.62, 0.085, frame)],
        "handlebar": [bar(-0.56, -0.6, -0.25, -0.66, 0.1, (50, 45, 48))],
        "saddle": [oval(seat[0] + 0.03, -0.46, 0.2, 0.075, (50, 45, 48))],
    }
    return _mirrored(parts, random)


def _clock(random: np.random.Generator) -> dict[str, Part]:
    rim, dial, hand = (
        random_colour(random),
        lighter(lighter(random_colour(random))),
        darker(darker(random_colour(random))),
    )
    hour, minute = random.uniform(0, 2 * np.pi, 2)
    ticks = [k * np.pi / 6 for k in range(12)]
    return {
        "case": disc(0, 0, 0.95, 0.95, rim),
        "dial": [
            oval(0, 0, 0.78, 0.78, dial),
            *(bar(*(0.6 * direction(a)), *(0.73 * direction(a)), 0.07, hand) for a in ticks),
        ],
        "hour_hand": [bar(*(-0.1 * direction(hour)), *(0.38 * direction(hour)), 0.12, hand)],
        "minute_hand": [bar(*(-0.12 * direction(minute)), *(0.58 * direction(minute)), 0.08, hand)],
        "hub": [oval(0, 0, 0.09, 0.09, hand)],
    }


def _flower(random: np.random.Generator) -> dict[str, Part]:
    j, petal, heart, stem = _jitter(random), random_colour(random), random_colour(random), darker(random_colour(random))
    count, first = int(random.integers(5, 8)), random.uniform(0, 2 * np.pi)
    angles = [first + 2 * np.pi * k / count for k in range(count)]
    parts = {"stem": [bar(0, -0.2, j(0.15), 1.0, 0.11, stem)]}
    parts["leaf"] = leaf(0.02, 0.72, -0.5 + j(0.2), 0.55 + j(), 0.26 + j(), lighter(stem))
    for k, angle in enumerate(angles, start=1):
        parts[f"petal_{k}"] = leaf(0, -0.35, angle, 0.62 + j(), 0.4 + j(), petal)
    parts["heart"] = disc(0, -0.35, 0.2 + j(0.03), 0.2, heart)
    return _mirrored(parts, random)


def _mirrored(parts: dict[str, Part], random: np.random.Generator) -> dict[str, Part]:
    """The object as it is, or facing the other way."""
    if random.random() < 0.5:
        return parts
    return {name: [(points * (-1, 1), colour) for points, colour in part] for name, part in parts.items()}


BUILDERS = {
    build.__name__[1:]: build for build in (_face, _dog, _cat, _owl, _rabbit, _fish, _car, _bicycle, _clock, _flower)
}
CLASSES = tuple(BUILDERS)

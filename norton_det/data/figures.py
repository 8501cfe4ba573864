"""Draws the figures of the scenes: articulated people and five other kinds of object, as flat polygons.

A figure is built around the origin with a longest side of about 1, y pointing down, and then placed.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from norton_det.data.polygons import Figure, Polygon, ellipse, hanging, limb, polygon, rectangle, shade, vivid_colour

WHITE, BLACK, GLASS = (245, 245, 240), (30, 28, 32), (190, 222, 238)
SKIN = ((246, 212, 184), (230, 184, 148), (198, 142, 104), (146, 96, 66), (98, 62, 44))
HAIR = ((38, 28, 24), (86, 54, 32), (150, 92, 44), (226, 192, 110), (176, 60, 32), (170, 170, 172))


def person(rng: np.random.Generator) -> Figure:
    """Draw a person who faces the viewer (their left is the picture's right), about 1 tall, with 17 keypoints."""
    shirt, trousers, shoes = vivid_colour(rng), vivid_colour(rng), shade(vivid_colour(rng), 0.6)
    skin, hair = SKIN[rng.integers(len(SKIN))], HAIR[rng.integers(len(HAIR))]
    sleeve = shade(shirt, 0.84) if rng.uniform() < 0.5 else shade(skin, 0.95)
    turn = rng.uniform(-0.025, 0.025)
    tilt = rng.uniform(-0.02, 0.02)
    head = (tilt, -0.4)

    sides = (1, -1)  # the person's left, then right: COCO's order
    shoulders = [np.array([0.1 * side, -0.27]) for side in sides]
    hips = [np.array([0.062 * side, 0.03]) for side in sides]
    elbows, wrists, knees, ankles = [], [], [], []
    for side, shoulder, hip in zip(sides, shoulders, hips, strict=True):
        raised = rng.uniform(5, 60) if rng.uniform() < 0.6 else rng.uniform(60, 150)
        bent = rng.uniform(-70, 80)
        elbows.append(hanging(shoulder, 0.15, side * raised))
        wrists.append(hanging(elbows[-1], 0.15, side * (raised + bent)))
        spread, kick = rng.uniform(-2, 32), rng.uniform(-35, 5)
        knees.append(hanging(hip, 0.215, side * spread))
        ankles.append(hanging(knees[-1], 0.215, side * (spread + kick)))

    parts = [Polygon(ellipse(head, (0.095, 0.1)), hair)] if rng.uniform() < 0.35 else []
    for side, hip, knee, ankle in zip(sides, hips, knees, ankles, strict=True):
        parts.append(Polygon(limb(ankle, ankle + np.array([0.035 * side, 0.025]), 0.062), shoes))
        parts.append(Polygon(limb(knee, ankle, 0.07), trousers))
        parts.append(Polygon(limb(hip, knee, 0.088), trousers))
    parts.append(Polygon(rectangle(tilt / 2 - 0.032, -0.36, tilt / 2 + 0.032, -0.26), shade(skin, 0.85)))
    torso = [(-0.115, -0.295), (0.115, -0.295), (0.13, -0.25), (0.1, 0.06), (-0.1, 0.06), (-0.13, -0.25)]
    if rng.uniform() < 0.3:  # a dress
        torso[3:5] = [(0.16, 0.17), (-0.16, 0.17)]
    parts.append(Polygon(polygon(*torso), shirt))
    for shoulder, elbow, wrist in zip(shoulders, elbows, wrists, strict=True):
        parts.append(Polygon(limb(elbow, wrist, 0.058), skin))
        parts.append(Polygon(ellipse((wrist[0], wrist[1]), (0.038, 0.038)), skin))
        parts.append(Polygon(limb(shoulder, elbow, 0.07), sleeve))

    eyes = [np.array([tilt + turn + 0.03 * side, -0.412]) for side in sides]
    ears = [np.array([tilt + turn / 3 + 0.076 * side, -0.395]) for side in sides]
    nose = np.array([tilt + 1.2 * turn, -0.385])
    parts += [Polygon(ellipse((ear[0], ear[1]), (0.018, 0.024)), shade(skin, 0.85)) for ear in ears]
    parts.append(Polygon(ellipse(head, (0.075, 0.088)), skin))
    parts.append(Polygon(ellipse((tilt, -0.415), (0.079, 0.083), (185, 355)), hair))
    parts += [Polygon(ellipse((eye[0], eye[1] + 0.006), (0.011, 0.014)), BLACK) for eye in eyes]
    parts.append(Polygon(ellipse((nose[0], nose[1]), (0.01, 0.015)), shade(skin, 0.72)))
    parts.append(Polygon(ellipse((tilt + turn, -0.358), (0.028, 0.014), (0, 180)), (176, 60, 62)))

    pairs = (eyes, ears, shoulders, elbows, wrists, hips, knees, ankles)
    return Figure(tuple(parts), np.array([nose, *(joint for pair in pairs for joint in pair)]))


def car(rng: np.random.Generator) -> Figure:
    """Draw a car from the side."""
    paint, rear, front = vivid_colour(rng), rng.uniform(-0.42, -0.25), rng.uniform(0.18, 0.3)
    roof = rng.uniform(-0.28, -0.22)
    cabin = polygon((rear, -0.04), (rear + 0.1, roof), (front - 0.16, roof), (front, -0.04))
    window = polygon(
        (rear + 0.06, -0.05), (rear + 0.13, roof + 0.04), (front - 0.18, roof + 0.04), (front - 0.06, -0.05)
    )
    body = polygon((-0.5, -0.02), (-0.46, -0.07), (0.4, -0.07), (0.5, 0.0), (0.5, 0.13), (-0.5, 0.13))
    middle = (rear + front) / 2 - 0.02
    parts = [
        Polygon(cabin, paint),
        Polygon(window, GLASS),
        Polygon(rectangle(middle - 0.02, roof, middle + 0.02, -0.04), paint),
        Polygon(body, paint),
        Polygon(ellipse((0.46, 0.02), (0.03, 0.03)), (252, 236, 150)),
    ]
    for axle in (-0.28, 0.28):
        parts += [
            Polygon(ellipse((axle, 0.13), (0.115, 0.115)), BLACK),
            Polygon(ellipse((axle, 0.13), (0.05, 0.05)), WHITE),
        ]
    return Figure(tuple(parts))


def ball(rng: np.random.Generator) -> Figure:
    """Draw a ball with a coloured band or coloured sectors."""
    first, second = vivid_colour(rng), WHITE if rng.uniform() < 0.5 else vivid_colour(rng)
    parts = [Polygon(ellipse((0, 0), (0.5, 0.5)), first)]
    if rng.uniform() < 0.5:
        band = np.concatenate([ellipse((0, 0), (0.5, 0.5), (-20, 20)), ellipse((0, 0), (0.5, 0.5), (160, 200))])
        parts.append(Polygon(band, second))
    else:
        for start in (0, 120, 240):
            sector = np.concatenate([np.zeros((1, 2)), ellipse((0, 0), (0.5, 0.5), (start, start + 60))])
            parts.append(Polygon(sector, second))
    return Figure(tuple(parts))


def house(rng: np.random.Generator) -> Figure:
    """Draw a house with a gable roof, a door and a window."""
    wall, roof, door = vivid_colour(rng), vivid_colour(rng), shade(vivid_colour(rng), 0.6)
    half = rng.uniform(0.34, 0.44)
    parts = [Polygon(rectangle(0.16, -0.44, 0.27, -0.1), shade(roof, 0.7))] if rng.uniform() < 0.5 else []
    parts += [
        Polygon(rectangle(-half, -0.08, half, 0.5), wall),
        Polygon(polygon((-half - 0.07, -0.06), (0, -0.5), (half + 0.07, -0.06)), roof),
        Polygon(rectangle(-half + 0.09, 0.14, -half + 0.29, 0.5), door),
        Polygon(rectangle(half - 0.32, 0.08, half - 0.09, 0.3), GLASS),
    ]
    return Figure(tuple(parts))


def fish(rng: np.random.Generator) -> Figure:
    """Draw a fish from the side, with a forked tail."""
    scales, fins = vivid_colour(rng), vivid_colour(rng)
    girth = rng.uniform(0.2, 0.27)
    tail = polygon((-0.22, 0), (-0.5, -0.24), (-0.42, 0), (-0.5, 0.24))
    parts = [
        Polygon(tail, fins),
        Polygon(polygon((-0.12, -0.12), (0.0, -girth - 0.1), (0.24, -0.12)), fins),
        Polygon(ellipse((0.12, 0), (0.38, girth)), scales),
    ]
    for x in (-0.02, 0.12):
        reach = girth * float(np.sqrt(1 - ((x - 0.12) / 0.38) ** 2)) - 0.01
        parts.append(Polygon(rectangle(x - 0.03, -reach, x + 0.03, reach), shade(fins, 1.15)))
    parts += [
        Polygon(ellipse((0.34, -0.05), (0.05, 0.05)), WHITE),
        Polygon(ellipse((0.35, -0.05), (0.025, 0.025)), BLACK),
    ]
    return Figure(tuple(parts))


def kite(rng: np.random.Generator) -> Figure:
    """Draw a diamond-shaped kite in four fields with two bows on its tail."""
    colours = vivid_colour(rng), vivid_colour(rng)
    half, sway = rng.uniform(0.27, 0.34), rng.uniform(-0.12, 0.12)
    top, right, bottom, left, cross = (0.0, -0.5), (half, -0.18), (0.0, 0.25), (-half, -0.18), (0.0, -0.18)
    knots = np.array([[0.0, 0.22], [sway, 0.34], [0.0, 0.5]])
    parts = [Polygon(limb(a, b, 0.03), WHITE) for a, b in pairwise(knots)]
    for x, y in knots[1:]:
        bow = polygon((x - 0.08, y - 0.05), (x - 0.08, y + 0.05), (x + 0.08, y - 0.05), (x + 0.08, y + 0.05))
        parts.append(Polygon(bow, colours[0]))
    parts += [
        Polygon(polygon(top, right, cross), colours[0]),
        Polygon(polygon(right, bottom, cross), colours[1]),
        Polygon(polygon(bottom, left, cross), colours[0]),
        Polygon(polygon(left, top, cross), colours[1]),
    ]
    return Figure(tuple(parts))


def crowd(rng: np.random.Generator) -> Figure:
    """Draw six to eleven people packed together, about 1 wide, without keypoints, as in COCO's crowds."""
    count = int(rng.integers(6, 12))
    parts: list[Polygon] = []
    depths = np.sort(rng.uniform(-0.08, 0.08, count))
    for x, y in zip(rng.permutation(np.linspace(-0.42, 0.42, count)), depths, strict=True):
        size = 0.36 + y
        parts += person(rng).placed(np.eye(2) * size, np.array([x, 2 * y])).parts
    return Figure(tuple(parts))


FIGURES: dict[str, Callable[[np.random.Generator], Figure]] = {
    "person": person,
    "car": car,
    "ball": ball,
    "house": house,
    "fish": fish,
    "kite": kite,
}

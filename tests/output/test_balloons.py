"""Speech balloons."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from storydiffusion.output.balloons import (
    draw_balloon,
    find_busiest_point,
    find_calm_place,
    measure_variance,
    outline_balloon,
)
from storydiffusion.output.drawing import Line, Outline

COLOURS = ("white", "black")


def figure(left: int, top: int, size: int = 60) -> Image.Image:
    """Return a calm image, 200 × 160, with a striped figure."""
    image = Image.new("RGB", (200, 160), (120, 180, 220))
    canvas = ImageDraw.Draw(image)
    for x in range(left, left + size, 6):
        canvas.rectangle((x, top, x + 2, top + size), fill=(90, 20, 20))
    return image


@pytest.mark.parametrize(("left", "top"), [(10, 80), (130, 80), (70, 90), (10, 10), (130, 10), (70, 50)])
def test_a_balloon_covers_no_figure_and_its_tail_points_to_it(left: int, top: int):
    outline, *lines = draw_balloon(figure(left, top), "Hello there!", (0, 0, 200, 160), 14, 2, (), COLOURS)
    assert isinstance(outline, Outline)
    assert all(isinstance(line, Line) for line in lines)
    tip = min(outline.points, key=lambda point: math.dist(point, (left + 30, top + 30)))
    body = [point for point in outline.points if point != tip]
    xs, ys = zip(*body, strict=True)
    apart = min(xs) > left + 60 or max(xs) < left or min(ys) > top + 60 or max(ys) < top
    assert apart, (min(xs), max(xs), min(ys), max(ys))


@pytest.mark.parametrize("text", ["Hi", "word " * 30, "字" * 60, "x" * 60, "שלום", "One.\nTwo."])
@pytest.mark.parametrize("size", [(200, 160), (300, 80), (80, 300)])
def test_a_balloon_lies_inside_its_panel(text: str, size: tuple[int, int]):
    image = figure(20, 20, 30).resize(size)
    outline, *lines = draw_balloon(image, text, (7, 9, *size), 12, 1, (), COLOURS)
    assert isinstance(outline, Outline)
    assert all(7 <= x <= 7 + size[0] and 9 <= y <= 9 + size[1] for x, y in outline.points)
    said = "".join(line.text for line in lines if isinstance(line, Line))
    assert "".join(said.split()) == "".join(text.split())


def test_long_text_is_set_smaller_rather_than_over_the_figure():
    """The figure leaves a third of the image free, in which the full size does not fit."""
    text = "I hopped all of Monday, most of Tuesday, and by Wednesday I had forgotten how to stand still."
    outline, *lines = draw_balloon(figure(70, 65, 80), text, (0, 0, 200, 160), 14, 2, (), COLOURS)
    assert isinstance(outline, Outline)
    assert isinstance(lines[0], Line)
    assert lines[0].lettering.size < 14
    assert sorted(y for _, y in outline.points)[-4] < 70


def test_the_calmest_place_is_found_by_brute_force():
    variance = np.random.default_rng(0).random((9, 12))
    left, top, cost = find_calm_place(variance, 4 / 12, 3 / 9)
    costs = {
        (y, x): variance[y : y + 3, x : x + 4].sum() / variance.sum() + 0.05 * y / 6 for y in range(7) for x in range(9)
    }
    best = min(costs, key=lambda place: costs[place])
    assert best == (round(top * 9), round(left * 12))
    assert cost == pytest.approx(costs[best])


def test_an_even_image_has_its_balloon_at_the_top_left():
    variance = measure_variance(Image.new("RGB", (90, 60), "green"))
    assert find_calm_place(variance, 0.4, 0.2) == (0, 0, 0)
    assert find_busiest_point(variance) == pytest.approx((0.5, 0.5))


@given(st.floats(-300, 300), st.floats(-300, 300))
def test_the_tail_stays_on_the_way_to_its_target(x: float, y: float):
    plain = outline_balloon((0, 0), (60, 30), (0, 0), 10)
    points = outline_balloon((0, 0), (60, 30), (x, y), 10)
    tips = set(points) - set(plain)
    far = [point for point in points if abs(point[0]) > 60.01 or abs(point[1]) > 30.01]
    assert len(far) <= 1
    for tip in far:
        assert math.dist((0, 0), tip) < math.hypot(x, y)
        assert math.atan2(tip[1], tip[0]) == pytest.approx(math.atan2(y, x))
        assert tip in tips

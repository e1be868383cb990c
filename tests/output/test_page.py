"""The comic page."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops
from scipy.ndimage import find_objects, label

from storydiffusion.errors import UserError
from storydiffusion.output.enlarge import resize
from storydiffusion.output.page import comic_page
from storydiffusion.output.page_settings import DEFAULT_PAGE, LAYOUTS, PageSettings, page_columns, page_rows

RED = (200, 30, 30)


def make_images(number: int, size: tuple[int, int] = (128, 128)) -> list[Image.Image]:
    return [Image.new("RGB", size, RED)] * number


def red_boxes(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Find the panels' red images: (left, top, right, bottom), in reading order."""
    labels = np.asarray(label((np.asarray(image) == RED).all(-1))[0])  # pyright: ignore
    return [(x.start, y.start, x.stop, y.stop) for y, x in find_objects(labels)]


@given(st.integers(1, 200))
def test_rows_hold_all_panels_evenly(panels: int):
    rows = page_rows(panels)
    assert sum(rows) == panels
    assert max(rows) <= page_columns(panels)
    assert max(rows) - min(rows) <= 1


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7, 32])
def test_every_panel_is_on_the_page(number: int):
    page = comic_page(make_images(number), [f"Caption {i}" for i in range(number)], "Title")
    boxes = red_boxes(page)
    assert len(boxes) == number
    assert all(left > 0 and right < page.width and bottom < page.height for left, _, right, bottom in boxes)
    assert len({top for _, top, _, _ in boxes}) == len(page_rows(number))


def test_four_small_images_make_a_page_1200_wide():
    assert comic_page(make_images(4), [""] * 4, "T").width == 1200


def test_large_images_are_not_shrunk_to_a_small_page():
    boxes = red_boxes(comic_page(make_images(4, (768, 768)), [""] * 4))
    assert all(750 <= right - left <= 768 for left, _, right, _ in boxes)


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (9, 7), (2000, 1000)])
def test_aspect_ratio_is_kept(size: tuple[int, int]):
    left, top, right, bottom = red_boxes(comic_page(make_images(1, size), [""]))[0]
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.03)


@pytest.mark.parametrize("size", [(4096, 8), (8, 4096), (1, 1)])
def test_extreme_images_do_not_make_extreme_pages(size: tuple[int, int]):
    page = comic_page(make_images(4, size), ["Caption"] * 4, "T")
    assert len(red_boxes(page)) == 4
    assert page.height < 6 * page.width


def test_an_image_of_another_aspect_ratio_is_shown_whole():
    odd = Image.new("RGB", (40, 120), RED)
    left, top, right, bottom = red_boxes(comic_page([*make_images(1), odd], ["", ""]))[1]
    assert (bottom - top) / (right - left) == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize(("number", "index"), [(1, 0), (4, 0), (4, 3), (5, 1), (5, 2), (13, 12)])
def test_every_caption_is_drawn_below_its_own_panel(number: int, index: int):
    """Changing one caption changes only the strip below its panel."""
    captions = ["MMM"] * number
    page = comic_page(make_images(number), captions, "T")
    captions[index] = "ooo"
    changed = ImageChops.difference(page, comic_page(make_images(number), captions, "T")).getbbox()
    left, _, right, bottom = red_boxes(page)[index]
    assert changed is not None
    assert left <= changed[0]
    assert changed[2] <= right
    assert bottom < changed[1] < changed[3] < bottom + 90


def test_panel_without_caption_has_no_strip():
    both = comic_page(make_images(2), ["Words", ""])
    none = comic_page(make_images(2), ["", ""])
    assert none.height < both.height
    right_half = (both.width // 2 + 20, none.height, both.width, both.height)
    assert len(both.crop(right_half).getcolors() or []) == 1  # paper alone


def test_long_captions_enlarge_the_page():
    short = comic_page(make_images(2), ["a", "b"])
    long = comic_page(make_images(2), ["word " * 200, "b"])
    assert long.height > short.height + 300
    assert long.width == short.width


def test_unusual_text_is_drawn_or_dropped_without_error():
    odd = ["🎉👩‍👩‍👧", "\x00\u200b", "عربى ไทย", "<b>&amp;", "字" * 300, "x" * 500, "\n\n", " "]
    assert len(red_boxes(comic_page(make_images(8), odd, "🎉\n" * 3))) == 8


def test_title_adds_height():
    assert comic_page(make_images(1), [""], "T").height > comic_page(make_images(1), [""], " ").height


@pytest.mark.parametrize(("number", "captions"), [(0, []), (2, ["one"])])
def test_differing_numbers_of_images_and_captions_are_refused(number: int, captions: list[str]):
    with pytest.raises(ValueError, match="captions"):
        comic_page(make_images(number), captions)


def test_page_is_deterministic():
    first, second = (comic_page(make_images(3), ["a", "雪", "c"], "T") for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_enlarging_sharpens_without_halos():
    """An edge between two greys becomes steeper than by Lanczos alone, without over- or undershoot."""
    edge = Image.new("RGB", (32, 32), (60, 60, 60))
    edge.paste((180, 180, 180), (16, 0, 32, 32))
    large, plain = resize(edge, (160, 160)), edge.resize((160, 160), Image.Resampling.LANCZOS)
    assert large.getextrema() == ((60, 180),) * 3

    def between(image: Image.Image) -> int:
        return sum(70 < image.getpixel((x, 80))[0] < 170 for x in range(160))  # pyright: ignore

    assert between(large) < between(plain)


def test_images_that_do_not_grow_use_plain_lanczos():
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    assert resize(noise, (64, 64)).tobytes() == noise.tobytes()


LAYOUTS_OF_FIVE = {"auto": [2, 3], "grid": [2, 3], "strip": [5], "webtoon": [1, 1, 1, 1, 1]}


def test_every_layout_is_tried_below():
    assert LAYOUTS_OF_FIVE.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", LAYOUTS_OF_FIVE)
def test_a_layout_sets_its_rows(layout: str):
    page = comic_page(make_images(5), ["Caption"] * 5, "T", settings=replace(DEFAULT_PAGE, layout=layout))
    tops = [top for _, top, _, _ in red_boxes(page)]
    assert [tops.count(top) for top in dict.fromkeys(tops)] == LAYOUTS_OF_FIVE[layout]


@given(st.integers(1, 200), st.sampled_from(sorted(LAYOUTS)))
def test_every_layout_holds_all_panels(panels: int, layout: str):
    rows = LAYOUTS[layout].rows(panels)
    assert sum(rows) == panels
    assert min(rows) > 0


def test_width_gutter_and_margin_are_those_of_the_settings():
    page = comic_page(make_images(4), [""] * 4, settings=PageSettings("grid", width=600, gutter=40, margin=10))
    boxes, line = red_boxes(page), 2
    assert page.width == 600
    assert boxes[0][:2] == (10 + line, 10 + line)
    assert boxes[1][0] - boxes[0][2] == boxes[2][1] - boxes[0][3] - 2 * line == 40 + 2 * line  # and the shadow


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layout": "spiral"}, ["page.layout=spiral", "webtoon"]),
        ({"width": 5}, ["page.width=5", "64"]),
        ({"gutter": -1}, ["page.gutter=-1"]),
        ({"margin": 10**9}, ["page.margin=1000000000"]),
        ({"layout": "strip", "width": 200}, ["200 pixels", "5 panels", "page.width"]),
        ({"width": 400, "margin": 300}, ["400 pixels", "page.margin"]),
    ],
)
def test_a_page_without_room_is_refused(settings: dict, named: list[str]):
    with pytest.raises(UserError) as refused:
        comic_page(make_images(5), [""] * 5, settings=replace(DEFAULT_PAGE, **settings))
    assert all(part in str(refused.value) for part in named)


def test_speech_changes_its_own_panel_alone():
    images, captions = make_images(4), ["MMM"] * 4
    silent = comic_page(images, captions, "T")
    page = comic_page(images, captions, "T", says=["", "", "Found you!", ""])
    changed = ImageChops.difference(page, silent).getbbox()
    left, top, right, bottom = red_boxes(silent)[2]
    assert changed is not None
    assert left <= changed[0] < changed[2] <= right
    assert top <= changed[1] < changed[3] <= bottom

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storydiffusion.evaluation.metrics.attribute_agreement import (
    alignment,
    consistency,
    early_end,
    named_alignment,
    pair_agreement,
)

COLORS = st.lists(st.sampled_from(["red", "green", "blue"]), min_size=2, max_size=6)


def readings(*shirts: str) -> list[dict[str, str]]:
    return [{"shirt": shirt} for shirt in shirts]


@pytest.mark.parametrize(
    ("shirts", "share"),
    [
        (("red",) * 4, 1),
        (("red", "red", "red", "blue"), 3 / 6),
        (("red", "red", "blue", "blue"), 2 / 6),
        (("red", "red", "green", "blue"), 1 / 6),
        (("red", "blue"), 0),
    ],
)
def test_pairs_by_hand(shirts, share):
    assert pair_agreement(readings(*shirts), "shirt") == pytest.approx(share)


@given(COLORS)
def test_pairs_do_not_depend_on_order_or_names(shirts):
    share = pair_agreement(readings(*shirts), "shirt")
    assert share is not None
    assert 0 <= share <= 1
    assert pair_agreement(readings(*sorted(shirts)), "shirt") == share
    assert pair_agreement(readings(*[shirt + "ish" for shirt in shirts]), "shirt") == share


def test_pairs_count_where_both_images_have_the_attribute():
    hats = [{"hat_color": "red"}, {}, {"hat_color": "red"}, {"hat_color": "blue"}]
    assert pair_agreement(hats, "hat_color") == pytest.approx(1 / 3)
    assert pair_agreement([{"hat_color": "red"}, {}], "hat_color") is None


def test_neighbors_are_pairs_of_reach_one():
    shirts = readings("red", "red", "blue", "blue", "red")
    assert pair_agreement(shirts, "shirt", reach=1) == 2 / 4
    assert pair_agreement(shirts, "shirt", reach=2) == 2 / 7
    assert pair_agreement(shirts, "shirt", reach=4) == pair_agreement(shirts, "shirt") == 4 / 10
    assert consistency(shirts, ["shirt"], reach=1) == 2 / 4


def test_an_image_without_the_attribute_keeps_its_place():
    hats = [{"hat_color": "red"}, {}, {"hat_color": "red"}, {"hat_color": "blue"}]
    assert pair_agreement(hats, "hat_color", reach=1) == 0
    assert pair_agreement(hats, "hat_color", reach=2) == 1 / 2


def test_independent_readings_agree_as_often_as_chance():
    pairs = [pair_agreement(readings(a, b), "shirt") for a, b in itertools.product("abcde", repeat=2)]
    assert sum(share or 0 for share in pairs) / len(pairs) == pytest.approx(1 / 5)


def test_consistency_weights_attributes_equally_and_skips_those_without_pairs():
    images = [{"shirt": "red", "hat": "cap"}, {"shirt": "red", "hat": "none"}]
    assert consistency(images, ["shirt", "hat"]) == 0.5
    assert consistency(images, ["shirt", "hat_color"]) == 1
    with pytest.raises(ValueError, match="no pair"):
        consistency(images, ["hat_color"])


def test_alignment_is_over_the_prompted_attributes():
    prompted = [{"place": "park", "shirt": "red"}, {"place": "city"}]
    read = [{"place": "park", "shirt": "blue"}, {"place": "city", "shirt": "blue"}]
    assert alignment(read, prompted, ["place"]) == 1
    assert alignment(read, prompted, ["shirt"]) == 0
    assert alignment(read, prompted, ["place", "shirt"]) == pytest.approx(2 / 3)
    assert alignment(read, prompted, ["hair"]) is None
    assert alignment([{}], [{"hat_color": "red"}], ["hat_color"]) == 0, "a missing hat does not match"
    with pytest.raises(ValueError, match="zip"):
        alignment(read[:1], prompted, ["place"])


def test_named_alignment_is_over_what_the_first_prompt_names():
    prompted = [{"place": "park", "shirt": "red"}] * 2
    read = [{"place": "city", "shirt": "red"}, {"place": "city", "shirt": "blue"}]
    assert named_alignment(read, prompted, ("place",)) == 0.5
    assert named_alignment(read, prompted, ("place", "shirt")) is None


def test_the_early_end_is_the_share_of_differing_attributes_already_as_at_the_end():
    start = {"kind": "fox", "place": "park", "shirt": "red", "hat": "cap"}
    end = {"kind": "bear", "place": "park", "shirt": "blue", "hat": "crown", "hair": "black"}
    assert early_end(start, start, end) == 0
    assert early_end(end, start, end) == 1
    assert early_end({**start, "shirt": "blue"}, start, end) == pytest.approx(1 / 3)
    assert early_end({"place": "beach"}, start, end) == 0
    assert early_end(start, start, start) is None

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storydiffusion.evaluation.metrics.attribute_agreement import alignment, consistency, pair_agreement

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


def test_pairs_count_where_both_pictures_have_the_attribute():
    hats = [{"hat_color": "red"}, {}, {"hat_color": "red"}, {"hat_color": "blue"}]
    assert pair_agreement(hats, "hat_color") == pytest.approx(1 / 3)
    assert pair_agreement([{"hat_color": "red"}, {}], "hat_color") is None


def test_neighbours_are_pairs_of_reach_one():
    shirts = readings("red", "red", "blue", "blue", "red")
    assert pair_agreement(shirts, "shirt", reach=1) == 2 / 4
    assert pair_agreement(shirts, "shirt", reach=2) == 2 / 7
    assert pair_agreement(shirts, "shirt", reach=4) == pair_agreement(shirts, "shirt") == 4 / 10
    assert consistency(shirts, ["shirt"], reach=1) == 2 / 4


def test_a_picture_without_the_attribute_keeps_its_place():
    hats = [{"hat_color": "red"}, {}, {"hat_color": "red"}, {"hat_color": "blue"}]
    assert pair_agreement(hats, "hat_color", reach=1) == 0
    assert pair_agreement(hats, "hat_color", reach=2) == 1 / 2


def test_independent_readings_agree_as_often_as_chance():
    pairs = [pair_agreement(readings(a, b), "shirt") for a, b in itertools.product("abcde", repeat=2)]
    assert sum(share or 0 for share in pairs) / len(pairs) == pytest.approx(1 / 5)


def test_consistency_weighs_attributes_alike_and_leaves_out_those_without_pairs():
    pictures = [{"shirt": "red", "hat": "cap"}, {"shirt": "red", "hat": "none"}]
    assert consistency(pictures, ["shirt", "hat"]) == 0.5
    assert consistency(pictures, ["shirt", "hat_color"]) == 1
    with pytest.raises(ValueError, match="no pair"):
        consistency(pictures, ["hat_color"])


def test_alignment_is_over_what_was_told():
    told = [{"place": "park", "shirt": "red"}, {"place": "city"}]
    shown = [{"place": "park", "shirt": "blue"}, {"place": "city", "shirt": "blue"}]
    assert alignment(shown, told, ["place"]) == 1
    assert alignment(shown, told, ["shirt"]) == 0
    assert alignment(shown, told, ["place", "shirt"]) == pytest.approx(2 / 3)
    assert alignment(shown, told, ["hair"]) is None
    assert alignment([{}], [{"hat_color": "red"}], ["hat_color"]) == 0, "a hat that is missing is not as told"
    with pytest.raises(ValueError, match="zip"):
        alignment(shown[:1], told, ["place"])

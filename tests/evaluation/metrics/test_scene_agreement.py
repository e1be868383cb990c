"""What images of the second edition show of their prompts, by hand and on random scenes."""

import numpy as np
import pytest

from storydiffusion.evaluation.metrics.registry import METRICS, compute_metrics
from storydiffusion.evaluation.metrics.scene_agreement import (
    hat_alignment,
    looks_kept_apart,
    pair_alignment,
    place_agreement,
    region_iou,
    value_alignment,
)
from storydiffusion.storyworld.edition import EDITIONS

PAIR = {"characters": "2", "kind_1": "cat", "kind_2": "fox", "side_1": "left", "side_2": "right"}


def measure(stated, reading):
    return compute_metrics("story", {"readings": [reading], "prompted": [stated], "named": [stated]})


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=lambda edition: f"edition {edition.number}")
def test_images_that_show_all_have_full_marks_and_every_metric_occurs(edition):
    seen = set()
    for index in range(300):
        truth = edition.sample(5, index)
        stated = edition.draw_prompt(truth, index).stated
        shown = {name: value for name, value in edition.get_labels(truth).items() if value is not None}
        found = {name: value for name, value in measure(stated, shown).items() if value is not None}
        assert set(found.values()) == {1}, stated
        seen |= set(found)
    measured = {name for name, one in METRICS.items() if set(one.needs) <= {"readings", "prompted", "named"}}
    of_first = {"alignment", "kind", "action", "place", "object", *(n for n in measured if n.startswith("named"))}
    scenes = {name for name in measured if METRICS[name].item == "story"}
    assert seen == (scenes & of_first if edition.number == 1 else scenes)


def test_shape_and_color_of_a_hat_count_together():
    named = [{"hat_1": "cap", "hat_color_1": "red", "hat_2": "none"}, {"hat": "crown", "hat_color": "blue"}]
    right = [{"hat_1": "cap", "hat_color_1": "red", "hat_2": "cap"}, {"hat": "crown", "hat_color": "blue"}]
    assert hat_alignment(right, named) == 1, "no hat is another metric"
    assert hat_alignment([right[0] | {"hat_color_1": "blue"}, right[1]], named) == 0.5
    assert hat_alignment([right[0] | {"hat_1": "crown"}, {"hat": "none"}], named) == 0
    assert hat_alignment(right[:1], [{"hat_1": "none"}]) is None
    assert value_alignment(right, named, "hat", "none") == 0
    assert value_alignment([{"hat_2": "none"}], [{"hat_2": "none"}], "hat", "none") == 1


def test_moods_are_counted_one_by_one():
    named = [{"mood_1": "fear", "mood_2": "awe"}, {"mood_1": "fear"}]
    read = [{"mood_1": "fear", "mood_2": "anger"}, {"mood_1": "sadness"}]
    found = [value_alignment(read, named, "mood", mood) for mood in ("fear", "awe", "anger")]
    assert found == [0.5, 0, None]


def test_both_characters_must_be_there_and_right():
    assert pair_alignment([PAIR], [PAIR], ("kind", "side")) == 1
    assert pair_alignment([PAIR | {"kind_2": "cat"}], [PAIR], ("kind",)) == 0
    assert pair_alignment([PAIR | {"characters": "1"}], [PAIR], ("kind",)) == 0
    one_side = {name: value for name, value in PAIR.items() if name != "side_2"}
    assert pair_alignment([PAIR], [one_side], ("side",)) is None
    assert pair_alignment([{"characters": "1"}], [{"characters": "1"}], ("kind",)) is None


@pytest.mark.parametrize(
    ("named", "read", "kept"),
    [
        (("red", "blue"), ("red", "blue"), 1),
        (("red", "blue"), ("blue", "red"), 0),
        (("red", "blue"), ("red", "red"), 0),
        (("red", "blue"), ("green", "white"), 1),  # wrong, but not the other's
        (("red", None), ("red", "red"), 1),  # an open shirt may be red as well
        (("red", None), ("blue", "red"), 0),
        (("red", None), ("blue", "white"), 1),
        (("red", "red"), ("red", "red"), None),  # nothing could pass
        ((None, None), ("blue", "red"), None),
    ],
)
def test_a_look_passes_to_the_other_where_the_prompt_does_not_ask_for_it(named, read, kept):
    prompted = PAIR | {f"shirt_{slot}": value for slot, value in enumerate(named, start=1) if value}
    reading = PAIR | {f"shirt_{slot}": value for slot, value in enumerate(read, start=1)}
    assert looks_kept_apart([reading], [prompted]) == kept
    mirrored = [
        {name.translate(str.maketrans("12", "21")): v for name, v in one.items()} for one in (reading, prompted)
    ]
    assert looks_kept_apart(mirrored[:1], mirrored[1:]) == kept


def test_looks_of_a_missing_character_pass_nowhere():
    prompted = PAIR | {"shirt_1": "red", "shirt_2": "blue"}
    assert looks_kept_apart([{"characters": "1", "kind_1": "cat", "shirt_1": "red"}], [prompted]) == 1
    assert looks_kept_apart([{"characters": "1", "kind_1": "cat", "shirt_1": "blue"}], [prompted]) == 0


def test_agreement_in_one_place_is_the_share_of_equal_pixels():
    images = [np.full((4, 4, 3), value, np.uint8) for value in (100, 124, 125, 250)]
    images[3][:, :1] = 100
    assert place_agreement(images, ["park", "park", "city", "snow"]) == 1
    assert place_agreement(images, ["park", "city", "park", "snow"]) == 0
    assert place_agreement(images, ["park", "city", "room", "park"]) == 0.25
    assert place_agreement(images, ["park", "park", "park", "snow"]) == pytest.approx(2 / 3)
    assert place_agreement(images, ["park", "city", "room", "snow"]) is None


def test_iou_of_regions_is_the_mean_over_characters():
    masks = np.zeros((2, 2, 4), bool)
    masks[0, :, :2], masks[1, :, 3] = True, True
    regions = np.array([[1, 1, 0, 2], [1, 1, 0, 2]])
    assert region_iou(regions, masks) == 1
    assert region_iou(np.where(regions == 1, 0, regions), masks) == 0.5
    assert region_iou(np.full((2, 4), 2), masks) == pytest.approx((0 + 2 / 8) / 2)
    assert region_iou(regions, masks[::-1]) == 0

"""Readings of both editions, fitted to what prompts state."""

import itertools

import pytest

from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.scene import existing_labels, sample_scene, scene_labels, split_label

every_edition = pytest.mark.parametrize("edition", EDITIONS.values(), ids=lambda edition: f"edition {edition.number}")


def read(edition, truth) -> dict[str, str]:
    """Return a perfect classifier's reading, which has a value also for what the image lacks."""
    labels = edition.get_labels(truth)
    return {name: labels[name] or values[0] for name, values in edition.labels.items()}


@every_edition
def test_a_perfect_reading_has_all_that_a_prompt_states(edition):
    for index in range(300):
        truth = edition.sample(3, index)
        stated = edition.draw_prompt(truth, index).stated
        found = edition.fit_reading(read(edition, truth), stated)
        assert stated.items() <= found.items()
        there = {name: value for name, value in edition.get_labels(truth).items() if value is not None}
        assert found == there if edition.number == 2 else there.items() <= found.items()


def test_a_missing_hat_has_no_color():
    fit = EDITIONS[1].fit_reading
    assert fit({"hat": "none", "hat_color": "red"}, {}) == {"hat": "none"}
    assert fit({"hat": "cap", "hat_color": "red"}, {}) == {"hat": "cap", "hat_color": "red"}


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("kind_1", ("kind", 1)),
        ("hat_color_2", ("hat_color", 2)),
        ("hat_color", ("hat_color", 0)),
        ("place", ("place", 0)),
    ],
)
def test_labels_are_split_into_attribute_and_character(label, parts):
    assert split_label(label) == parts


def exchange(labels: dict[str, str | None], *names: str) -> dict[str, str]:
    """Return a reading in which the characters have these attributes of each other."""
    other = {f"{name}_{slot}": labels[f"{name}_{3 - slot}"] for name in names for slot in (1, 2)}
    return {name: value or "" for name, value in (labels | other).items()}


def pair(**fixed):
    """Return a scene of two characters of different kinds, both with hair, hat and accessory."""
    for index in itertools.count():
        scene = sample_scene(4, index, count=2, hat="cap", accessory="scarf", **fixed)
        if {figure.kind for figure in scene.characters} == {"girl", "boy"}:
            return scene


def test_characters_without_named_sides_may_stand_in_either_order():
    labels = scene_labels(pair())
    everything = tuple(dict.fromkeys(split_label(name)[0] for name in labels if split_label(name)[1]))
    stated = {name: labels[name] for name in ("characters", "kind_1", "kind_2", "shirt_1", "action_2")}
    swapped = exchange(labels, *everything)
    assert EDITIONS[2].fit_reading(swapped, stated) == EDITIONS[2].fit_reading(exchange(labels), stated)


def test_kinds_decide_who_is_who_before_looks_and_sides():
    labels = scene_labels(pair())
    stated = {name: value for name, value in labels.items() if value is not None}
    others = ("tone", "shirt", "pattern", "bottom", "mood", "action", "side")
    read = exchange(labels, *others)
    found = EDITIONS[2].fit_reading(read, stated)
    assert [found["kind_1"], found["kind_2"]] == [labels["kind_1"], labels["kind_2"]]
    assert found["side_1"] == labels["side_2"]


def test_equal_kinds_are_distinguished_by_what_is_stated_but_not_by_sides():
    stated = {"characters": "2", "kind_1": "cat", "kind_2": "cat", "shirt_1": "red", "side_1": "left"}
    read = {
        "characters": "2", "kind_1": "cat", "kind_2": "cat", "shirt_1": "blue", "shirt_2": "red",
        "side_1": "left", "side_2": "right", "hat_1": "none", "hat_2": "none",
    }  # fmt: skip
    found = EDITIONS[2].fit_reading(read, stated)
    assert (found["shirt_1"], found["side_1"]) == ("red", "right")
    plain = {name: value for name, value in stated.items() if name != "shirt_1"}
    assert EDITIONS[2].fit_reading(read, plain)["side_1"] == "left", "nothing but sides: from left to right"


def test_a_character_that_is_not_there_has_no_labels():
    scene = sample_scene(4, 0, count=1)
    reading = read(EDITIONS[2], scene)
    found = EDITIONS[2].fit_reading(reading, {"characters": "2", "kind_1": "robot", "kind_2": scene.characters[0].kind})
    assert {split_label(name)[1] for name in found} <= {0, 2 if scene.characters[0].kind != "robot" else 1}
    assert found["characters"] == "1"
    assert existing_labels(reading).keys() == {name.replace("_2", "_1") for name in found}

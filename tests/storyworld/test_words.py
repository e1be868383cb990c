import pytest

from storydiffusion.storyworld.captions import words
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.words import find_limits, find_near_words, group_words

FIRST, SECOND = EDITIONS[1], EDITIONS[2]


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=lambda edition: f"edition {edition.number}")
def test_the_groups_are_the_vocabulary(edition):
    groups = group_words(edition)
    listed = {word for phrases in groups.values() for phrase in phrases for word in words(phrase)}
    assert listed | {",", "a"} == set(edition.vocabulary()) | {","}
    assert all(groups.values())


def test_only_the_second_edition_lists_moods_and_sides():
    assert not {"sides", "mood: fear"} & group_words(FIRST).keys()
    assert group_words(SECOND)["mood: fear"] == ("scared", "frightened", "fearful")
    assert "fox" in group_words(SECOND)["characters"]


@pytest.mark.parametrize(
    ("word", "near"),
    [("blond", "blonde"), ("Pant", "pants"), ("jump", "jumps"), ("balloons", "balloon"), ("rabit", "rabbit")],
)
def test_words_spelled_alike_are_suggested(word, near):
    assert find_near_words(word, FIRST.vocabulary())[0] == near


def test_nothing_is_suggested_for_a_word_like_no_other():
    assert find_near_words("xylophone", SECOND.vocabulary()) == []


@pytest.mark.parametrize(
    ("prompt", "limits"),
    [
        ("a girl in a red shirt is reading in the park", []),
        ("A Girl waves.", []),
        ("a girl and a cat are in the park", ["names 2 characters, but the model draws at most 1 in an image"]),
        ("a zebra waves", ["names no character that the model draws (girl, boy, robot, cat, bear, rabbit)"]),
        ("a sad girl waves on the far left", ["asks for moods (sad), which the model does not draw",
                                              "asks for sides (far, left), which the model does not draw"]),
    ],
)  # fmt: skip
def test_limits_of_the_first_edition(prompt, limits):
    assert find_limits(prompt, FIRST) == limits


@pytest.mark.parametrize(
    ("prompt", "limits"),
    [
        ("a sad fox waves on the far left and a girl reads on the right", []),
        ("an empty beach", []),
        ("in the park, nobody", []),
        ("a fox, a girl and a cat", ["names 3 characters, but the model draws at most 2 in an image"]),
        ("a beach", ["names no character that the model draws (girl, boy, robot, cat, bear, rabbit, fox)"]),
    ],
)
def test_limits_of_the_second_edition(prompt, limits):
    assert find_limits(prompt, SECOND) == limits


def test_an_empty_place_is_beyond_the_first_edition():
    assert find_limits("an empty beach", FIRST)[1] == "asks for empty places (empty), which the model does not draw"


@pytest.mark.parametrize("edition", EDITIONS.values(), ids=lambda edition: f"edition {edition.number}")
def test_captions_ask_for_nothing_beyond_their_edition(edition):
    for index in range(300):
        assert find_limits(edition.caption(edition.sample(3, index), index), edition) == []

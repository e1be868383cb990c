import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import ATTIRE, PLACE_WORDS, THIRD_PERSON, WORDINGS, join_prompts, words
from storydiffusion.storyworld.scene import FIGURE_ATTRIBUTES, SIDE_PAIRS, sample_scene, sample_scene_pair_member
from storydiffusion.storyworld.scene_captions import (
    MOOD_WORDS,
    SIDE_WORDS,
    Naming,
    caption_scene,
    describe_scene,
    draw_scene_pair_prompts,
    draw_scene_prompt,
    full_caption_of_scene,
    scene_vocabulary,
)

EVERYTHING = Naming(ATTIRE, "sad", True)
LOOKS = {"tone": "light", "shirt": "red", "pattern": "plain", "bottom": "blue", "hat": "none", "accessory": "scarf"}


def scene(**fixed):
    return sample_scene(0, 1, **{"place": "park", "object": "ball", "action": "waving", **LOOKS, **fixed})


def test_examples_of_one_character():
    sad = scene(count=1, kind="fox", mood="sadness", side="far left")
    assert describe_scene(sad, [Naming()]) == "a fox is waving in the park beside a ball"
    assert describe_scene(sad, [Naming(("shirt",), "crying", True)]) == (
        "a crying fox in a red shirt is waving on the far left in the park beside a ball"
    )
    assert describe_scene(sad, [Naming((), "", True)], 1) == ("in the park, a fox waves on the far left next to a ball")
    assert full_caption_of_scene(sad) == (
        "a sad light fox in a red plain shirt, blue pants and a scarf without a hat is waving on the far left in the "
        "park beside a ball"
    )
    neutral = scene(count=1, kind="girl", mood="neutral", side="middle", hair="red", object="none")
    assert full_caption_of_scene(neutral) == (
        "a neutral girl with light skin and red hair in a red plain shirt, a blue skirt and a scarf without a hat is "
        "waving in the middle in the park"
    )


def test_examples_of_two_characters():
    two = scene(count=2, kind="fox", mood="anger")
    left, right = (SIDE_WORDS[figure.side] for figure in two.characters)
    assert describe_scene(two, [Naming()] * 2) == ("a fox is waving and a fox is waving, in the park beside a ball")
    assert describe_scene(two, [Naming((), "mad", True)] * 2, 4) == (
        f"a mad fox waves {left} and a mad fox waves {right}, in the park beside a ball"
    )
    assert describe_scene(two, [Naming((), "", True)] * 2, 3, first=1) == (
        f"a fox, waving {right}, and a fox, waving {left}, in the park beside a ball"
    )
    assert describe_scene(two, [Naming(("shirt",))] * 2, 1) == (
        "in the park, a fox wearing a red shirt waves and a fox wearing a red shirt waves next to a ball"
    )


@pytest.mark.parametrize(
    ("wording", "place", "expected"),
    [
        (0, "beach", "an empty beach with a ball"),
        (1, "snow", "the empty snow field with a ball"),
        (2, "room", "nobody is in the room next to a ball"),
        (3, "city", "in the city, nobody beside a ball"),
    ],
)
def test_examples_of_an_empty_place(wording, place, expected):
    assert describe_scene(scene(count=0, place=place), [], wording) == expected
    assert describe_scene(scene(count=0, place=place, object="none"), [], wording) in expected


def test_captions_name_kind_action_place_object_and_sides_of_everyone():
    for index in range(400):
        drawn = sample_scene(1, index)
        text = full_caption_of_scene(drawn)
        for figure in drawn.characters:
            assert figure.kind in words(text)
            assert figure.action in text or THIRD_PERSON[figure.action] in text
            assert SIDE_WORDS[figure.side] in text
            assert MOOD_WORDS[figure.mood][0] in words(text)
        if drawn.characters:
            assert PLACE_WORDS[drawn.place] in text
        assert (drawn.object in words(text)) == (drawn.object != "none")


def test_full_captions_of_different_scenes_differ():
    labels = {full_caption_of_scene(sample_scene(2, index, count=2)) for index in range(500)}
    assert len(labels) == 500


def test_unnamed_parts_are_left_out():
    for index in range(300):
        drawn = sample_scene(3, index)
        for wording in range(len(WORDINGS)):
            said = set(words(describe_scene(drawn, [Naming()] * len(drawn.characters), wording)))
            assert not said & {word for each in MOOD_WORDS.values() for word in each}
            assert not said & {"shirt", "hair", "skin", "pants", "skirt", "hat", "scarf", "glasses", "left", "right"}


def test_captions_repeat_vary_and_stay_short_and_in_the_vocabulary():
    known = set(scene_vocabulary())
    for index in range(3000):
        drawn = sample_scene(4, index)
        text = caption_scene(drawn, index)
        assert set(words(text)) <= known
        assert len(words(text)) <= 75
        assert "".join(words(text)) == text.replace(" ", "")
        pair = join_prompts(draw_scene_pair_prompts(drawn, sample_scene_pair_member(4, index), index)).text
        assert set(words(pair)) <= known
        assert len(words(pair)) <= 75
        assert not set(words(pair)) & {"left", "right"}
    assert caption_scene(drawn, 3) == caption_scene(drawn, 3)
    assert len({caption_scene(sample_scene(4, 1, count=1), seed) for seed in range(200)}) > 50


def test_the_longest_captions_fit():
    longest = {"kind": "girl", "hat": "cap", "accessory": "bowtie", "action": "reading", "object": "flowers"}
    for index in range(60):
        drawn = sample_scene(5, index, count=2, **longest)
        for wording in range(len(WORDINGS)):
            assert len(words(describe_scene(drawn, [EVERYTHING] * 2, wording))) <= 75


def test_every_word_of_the_vocabulary_is_used():
    entries = scene_vocabulary()
    assert list(entries) == sorted(set(entries))
    used = {word for index in range(5000) for word in words(caption_scene(sample_scene(6, index), index))}
    assert used == set(entries)


def test_every_side_and_mood_has_words_of_its_own():
    assert SIDE_WORDS.keys() == set(FIGURE_ATTRIBUTES["side"]) >= {side for pair in SIDE_PAIRS for side in pair}
    synonyms = [word for each in MOOD_WORDS.values() for word in each]
    assert MOOD_WORDS.keys() == set(FIGURE_ATTRIBUTES["mood"])
    assert len(synonyms) == len(set(synonyms))


def test_moods_are_named_nearly_always_and_neutral_seldom():
    for mood, low, high in (("fear", 0.85, 0.95), ("neutral", 0.2, 0.3)):
        drawn = sample_scene(7, 0, count=1, mood=mood)
        share = sum(bool(set(words(caption_scene(drawn, seed))) & set(MOOD_WORDS[mood])) for seed in range(2000)) / 2000
        assert low < share < high


def test_namings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="1 namings do not fit 2 characters"):
        describe_scene(scene(count=2), [Naming()])
    with pytest.raises(UserError, match=r"cannot name shoes.*tone, hair"):
        describe_scene(scene(count=1), [Naming(("shoes",))])


def test_clauses_say_what_each_of_two_characters_does_and_nothing_of_the_other():
    for index in range(500):
        drawn = sample_scene(8, index, count=2)
        prompt = draw_scene_prompt(drawn, index)
        first, second = (prompt.text[start:end] for start, end in prompt.clauses)
        for said, own, other in zip((first, second), drawn.characters, drawn.characters[::-1], strict=True):
            assert own.kind in words(said)
            assert other.kind == own.kind or other.kind not in words(said)
            assert own.side == other.side or SIDE_WORDS[other.side] not in said
        assert not set(range(*prompt.clauses[0])) & set(range(*prompt.clauses[1]))


def test_prompts_state_what_their_words_name():
    for index in range(500):
        drawn = sample_scene(8, index)
        prompt = draw_scene_prompt(drawn, index)
        said, stated = set(words(prompt.text)), prompt.stated
        assert prompt.text == caption_scene(drawn, index)
        assert stated["characters"] == str(len(drawn.characters))
        moods = {value for name, value in stated.items() if name.startswith("mood")}
        assert moods == {mood for mood, synonyms in MOOD_WORDS.items() if said & set(synonyms)}
        sides = [value for name, value in stated.items() if name.startswith("side")]
        assert sides == [figure.side for figure in drawn.characters if SIDE_WORDS[figure.side] in prompt.text]
        for name in ("shirt", "pattern", "accessory", "hat_color", "hat"):
            named = {value for label, value in stated.items() if label[:-2] == name} - {"none"}
            assert named <= said
        for clothes, name in (("glasses", "accessory"), ("crown", "hat"), ("dotted", "pattern"), ("pink", "shirt")):
            assert (clothes in said) == (clothes in {stated.get(f"{name}_{slot}") for slot in (1, 2)})

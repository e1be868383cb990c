"""The words that describe each character of a caption, wherever they stand in it."""

import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import draw_prompt
from storydiffusion.storyworld.descriptions import find_descriptions
from storydiffusion.storyworld.scene import sample_scene
from storydiffusion.storyworld.scene_captions import draw_scene_prompt
from storydiffusion.storyworld.truth import sample_truth
from tests.helpers.descriptions import check_description


def test_random_captions_of_scenes_and_of_truths():
    for index in range(100):
        scene = sample_scene(9, index)
        if len({figure.kind for figure in scene.characters}) == len(scene.characters) > 0:
            prompt = draw_scene_prompt(scene, index)
            check_description(prompt.text, prompt.stated, find_descriptions(prompt.text, prompt.stated))
        prompt = draw_prompt(sample_truth(9, index), index)
        check_description(prompt.text, prompt.stated, find_descriptions(prompt.text, prompt.stated))


def test_clothes_behind_the_object_belong_to_the_character_and_the_object_does_not():
    text = "a happy rabbit is sitting on the far left in the forest next to a ball, wearing black pants and a cap"
    stated = {"kind_1": "rabbit", "bottom_1": "black", "hat_1": "cap", "hat_color_1": "green", "mood_1": "contentment"}
    text = text.replace("a cap", "a green cap")
    (spans,) = find_descriptions(text, stated)
    assert [text[start:end] for start, end in spans] == ["a", "rabbit", "wearing black pants and a green cap"]


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({"kind_1": "fox"}, "names no fox of these looks: give the labels that it states"),
        ({"kind_1": "bear", "shirt_1": "red"}, "gives its bear no such clothes"),
    ],
)
def test_labels_of_another_caption_are_named(stated, named):
    with pytest.raises(UserError, match=named):
        find_descriptions("a bear waves in the park", stated)

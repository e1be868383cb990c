import numpy as np
import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.scene import sample_scene
from storydiffusion.storyworld.scene_renderer import render_scene
from storydiffusion.storyworld.spoilt import FAULTS, render_spoilt


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_the_character_and_little_else(fault):
    for index in range(12):
        scene = sample_scene(4, index, count=1, kind="cat", action="standing", mood="neutral", object="none")
        whole, spoilt = render_scene(scene).astype(int), render_spoilt(scene, fault).astype(int)
        changed = np.abs(whole - spoilt).max(axis=2) > 30
        assert 10 < changed.sum() < 700
        assert np.array_equal(render_spoilt(scene, fault), spoilt)


def test_the_second_character_is_drawn_as_it_is():
    scene = sample_scene(4, 3, count=2, object="none")
    for fault in FAULTS:
        difference = np.abs(render_scene(scene).astype(int) - render_spoilt(scene, fault)).max(axis=2)
        right = round(64 + scene.characters[1].x)
        assert difference[:, right + 8 :].max() == 0


def test_what_cannot_be_spoilt_is_refused():
    with pytest.raises(UserError, match="fault is 'third eye': choose one of missing arm"):
        render_spoilt(sample_scene(4, 0, count=1), "third eye")
    with pytest.raises(UserError, match="nobody cannot have"):
        render_spoilt(sample_scene(4, 0, count=0), "missing arm")

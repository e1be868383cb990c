"""Settings become a brief for the model that they name."""

import json

import pytest

from storydiffusion.errors import UserError
from storydiffusion.writer.request import build_brief
from storydiffusion.writer.targets import FreeTarget, StoryWorldTarget
from tests.conftest import compose_config


def build(*overrides):
    config = compose_config("write", *overrides)
    return build_brief(config, config.model, config.seed)


def card(folder, **content):
    (folder / "storydiffusion.json").write_text(json.dumps(content))
    return f"model.path={folder}"


def test_the_target_is_what_the_model_was_trained_on(tmp_path):
    target = build("idea=a cat").target
    assert isinstance(target, StoryWorldTarget)
    assert target.edition in (1, 2)
    target = build("idea=a cat", card(tmp_path, kind="miniature", edition=2)).target
    assert isinstance(target, StoryWorldTarget)
    assert target.edition == 2
    assert isinstance(build("idea=a cat", card(tmp_path, kind="random")).target, FreeTarget)
    assert isinstance(build("idea=a cat", "model=sdxl").target, FreeTarget)
    with pytest.raises(UserError, match="edition=3"):
        build("idea=a cat", card(tmp_path, kind="miniature", edition=3))


def test_panels_are_the_writers_or_fewer_for_a_short_text(tmp_path):
    (tmp_path / "a.txt").write_text("One cat. Two cats. Three cats.")
    assert build("idea=a cat").panels == 6
    assert build("idea=a cat", "panels=4").panels == 4
    assert build(f"text={tmp_path / 'a.txt'}").panels == 3
    assert build(f"text={tmp_path / 'a.txt'}", "panels=2").panels == 2

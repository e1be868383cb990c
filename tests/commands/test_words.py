"""`storydiffusion words`, and what infer says of a prompt before it draws."""

import json
from pathlib import Path

import pytest

from storydiffusion.commands.words import format_groups
from storydiffusion.generation.story_warnings import warn_of_words
from storydiffusion.loaders.resolve import resolve_pretrained
from storydiffusion.story import load_story
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.words import group_words
from tests.conftest import ROOT, run_verb
from tests.helpers.world_model import build_world_model

PAGE = ROOT / "docs" / "words.md"


@pytest.fixture
def card(tmp_path: Path):
    """Write a model folder that is nothing but its card."""

    def write(**content: object) -> Path:
        (tmp_path / "storydiffusion.json").write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.mark.parametrize(("content", "edition"), [({}, 1), ({"edition": 1}, 1), ({"edition": 2}, 2)])
def test_lists_the_words_of_the_models_edition(capsys, card, content, edition):
    outcome = run_verb("words", [f"model.path={card(kind='miniature', **content)}"], capsys)
    assert outcome.code == 0
    assert f"edition {edition}: {len(EDITIONS[edition].vocabulary())} words" in outcome.out
    assert ("sadness" in outcome.out) == (edition == 2)


@pytest.mark.parametrize(
    ("content", "needs"),
    [
        ({"kind": "random"}, ["not trained on StoryWorld", "edition=2"]),
        ({"kind": "miniature", "edition": "new"}, ["edition 'new'", "whole number"]),
        ({"kind": "miniature", "edition": 7}, ["edition=7", "1, 2"]),
    ],
)
def test_other_models_are_refused(capsys, card, content, needs):
    outcome = run_verb("words", [f"model.path={card(**content)}"], capsys)
    assert outcome.code == 1
    assert len(outcome.sentences) == 1
    assert all(need in outcome.sentences[0] for need in needs)


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_page_has_the_words_of_both_editions(edition):
    assert "\n".join(format_groups(group_words(EDITIONS[edition]))) in PAGE.read_text(encoding="utf-8")


def test_a_model_says_what_it_cannot_draw(capsys, tmp_path):
    model = build_world_model(tmp_path / "model")
    (model / "storydiffusion.json").write_text(json.dumps({"kind": "miniature", "edition": 1}))
    story = tmp_path / "story.yaml"
    story.write_text(
        "characters: {Mia: a girl with blond hair, Tom: a sad cat}\n"
        'panels: [{prompt: "[Mia] waves in the park"}, {prompt: "[Mia] and [Tom] sit on the beach"}]\n'
    )
    remarks = warn_of_words(resolve_pretrained(model), load_story(story))
    said = capsys.readouterr().err
    assert "does not know these words of the prompts: blond (near: blonde), sad, sit (near: sits)" in said
    assert "warning: panel 2 names 2 characters, but the model draws at most 1 in an image" in said
    assert "panel 2 asks for moods (sad)" in said
    assert "panel 1" not in said
    assert set(remarks) == {"words unknown to the model", "beyond the model"}

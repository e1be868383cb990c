"""Schemas accept what they describe and name the place of anything else."""

import pytest

from storydiffusion.errors import UserError
from storydiffusion.story.emotions import EMOTIONS
from storydiffusion.writer.emotions import CATEGORIES, load_elements, plan_schema, read_plan
from storydiffusion.writer.schema import check, choice, items, record, text
from storydiffusion.writer.targets import FreeTarget, StoryWorldTarget
from tests.writer.briefs import TARGETS

SCHEMA = record(title=text(5), panels=items(record(action=choice("sitting", "running")), 1, 2))


def test_a_value_of_the_schema_passes():
    check({"title": "Hello", "panels": [{"action": "sitting"}]}, SCHEMA)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "the reply is []: give an object"),
        ({"title": "a"}, "has no 'panels'"),
        ({"title": "a", "panels": [], "x": 1}, "unknown key 'x'"),
        ({"title": "a", "panels": {}}, "panels is {}: give a list"),
        ({"title": "a", "panels": []}, "panels has 0 items: give 1 to 2"),
        (
            {"title": "a", "panels": [{"action": "flying"}]},
            "panels 1: action is 'flying': choose one of sitting, running",
        ),
        ({"title": "toolong", "panels": [{"action": "sitting"}]}, "title has 7 characters: give at most 5"),
        ({"title": " ", "panels": [{"action": "sitting"}]}, "title is ' ': give text"),
        ({"title": 5, "panels": [{"action": "sitting"}]}, "title is 5: give text"),
        ({"title": None, "panels": [{"action": "sitting"}]}, "title is None: give text"),
    ],
)
def test_any_other_value_is_named_with_its_place(value, said):
    with pytest.raises(UserError) as error:
        check(value, SCHEMA)
    assert said in str(error.value)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_schemas_of_targets_are_plain_json_whose_every_key_is_required(target):
    import json

    def visit(schema):
        if schema["type"] == "object":
            assert schema["required"] == [*schema["properties"]]
            assert schema["additionalProperties"] is False
            for each in schema["properties"].values():
                visit(each)
        elif schema["type"] == "array":
            visit(schema["items"])

    schema = target.reply_schema(4)
    assert json.loads(json.dumps(schema)) == schema
    visit(schema)
    assert schema["properties"]["panels"]["minItems"] == schema["properties"]["panels"]["maxItems"] == 4


def test_moods_are_offered_for_the_second_edition_only():
    def actor(edition):
        panel = StoryWorldTarget(edition).reply_schema(3)["properties"]["panels"]["items"]["properties"]
        return panel["characters"]["items"]["properties"]

    assert "mood" not in actor(1)
    assert set(EMOTIONS) < set(actor(2)["mood"]["enum"])


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_every_emotion_has_elements_of_each_category_and_some_that_storyworld_draws(emotion):
    assert load_elements()[emotion].keys() == set(CATEGORIES)
    assert all(len(each) >= 2 for each in FreeTarget().elements(emotion).values())
    drawn = StoryWorldTarget(1).elements(emotion)
    assert drawn["places"]
    assert drawn["postures"]


def test_a_plan_with_elements_of_its_own_is_refused():
    elements = ["beach", "grey drizzle"]
    plan = {"emotion": "sadness", "elements": ["beach"], "theme": "parting", "event": "Somebody leaves."}
    assert read_plan(plan, "sadness", elements).elements == ("beach",)
    for wrong in ({"elements": ["sunshine"]}, {"elements": []}, {"emotion": "awe"}, {"event": ""}):
        with pytest.raises(UserError, match="the plan"):
            read_plan({**plan, **wrong}, "sadness", elements)
    assert plan_schema("sadness", elements)["properties"]["elements"]["items"]["enum"] == elements

"""An idea is text: whatever it contains reaches the writer as it was typed, but for white space."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from storydiffusion.config.prose import quote_prose
from storydiffusion.errors import UserError
from tests.conftest import compose_config

IDEAS = (
    "Hello, world: a cat's day (with a ball)!",
    'she said "no" = {never} [ever]',
    "$HOME and {HOME}",
    "back\\slash \\' end\\",
    "5",
    "true",
    "_target_()",
    "дракон, 龙",
    "'",
    "?!",
)


@pytest.mark.parametrize("idea", IDEAS)
def test_an_idea_arrives_as_it_was_typed(idea):
    assert compose_config("write", f"idea={idea}", "out=x.yaml").idea == idea


@settings(max_examples=200)
@given(idea=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1).filter(str.strip))
def test_any_text_is_read_by_hydra_as_itself(idea):
    line = " ".join(idea.split())
    is_quoted = len(idea) > 1 and idea[0] == idea[-1] and idea[0] in "'\""
    if is_quoted or idea == "null" or "${" in idea:
        return
    (override,) = OverridesParser.create().parse_overrides([quote_prose(f"idea={idea}")])
    assert OmegaConf.create({"idea": override.value()}).idea == line


def test_a_reference_is_refused():
    with pytest.raises(UserError, match="idea contains"):
        quote_prose("idea=${oc.env:HOME}")


def test_null_and_quoted_values_and_other_keys_stay():
    for argument in ("idea=null", "idea='a, b'", 'idea="a"', "story=a,b", "idea=", "~idea"):
        assert quote_prose(argument) == argument

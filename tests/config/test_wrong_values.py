"""Every key of every verb, set to what it cannot be: one sentence in plain words, and the forms it suggests work."""

import copy
import functools
import re
import shlex

import pytest
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from storydiffusion.commands import VERBS, load_verb
from storydiffusion.config.command_line import CONF, compose_config
from storydiffusion.config.composition_errors import explain_composition
from storydiffusion.config.hydra_application import hydra_application
from storydiffusion.config.loading import flat
from storydiffusion.config.overrides import adapt, parse_overrides
from storydiffusion.config.value_types import in_shell, quote, write_setting
from storydiffusion.errors import UserError

NEEDED = {
    "compare": ["sweep=x"],
    "export": ["run_dir=x"],
    "export-vistorybench": ["runs=[x]", "out=x"],
    "index-shards": ["shards=x"],
    "make-shards": ["out=x"],
    "release": ["run=x", "out=x"],
    "save-character": ["run_dir=x", "name=x"],
    "user-study": ["methods.a=x", "methods.b=y"],
    "user-study-results": ["key=x", "answers=y"],
    "convert-emotion-probe": ["state=x", "out=x.safetensors"],
    "evaluate": ["run=x"],
    "write": ["idea=x"],
}
"""Settings without which a verb does not load."""

OWN = {"studio": ("folder", "port")}
"""Settings of a verb whose others are those of `infer`."""

CASES = {
    "infer": [[], ["baseline=ip_adapter"], ["baseline=photomaker", "benchmark=stories"], ["benchmark=transitions"]],
    "train": [
        [],
        ["recipe=autoencoder"],
        ["recipe=text2image"],
        ["recipe=trained_csa"],
        ["recipe=dit"],
        ["recipe=clip"],
        ["recipe=attribute_classifier"],
    ],
    "write": [["writer=rules"], ["writer=chat"]],
    "make-shards": [["source=storyworld"], ["source=csv"]],
}
"""Choices of groups that change which keys a verb has."""

VALUES = (
    "word", "''", "null", "true", "off", "-1", "0", "1.5", "1e999", "nan", "99999999999999999999", "[]", "[word]",
    "[1]", "[[word]]", "{}", "{a: 1}", "${nowhere}", "${oc.env:NOWHERE}", "???", "故事", "'two words'", "a=b",
)  # fmt: skip

UNREADABLE = ("${", "[word", "{a", "'word", "f(x)", "a!b", "a#b", "it's", "故(", "[a!,b]", "a,b", "range(1,3)")

INNER = re.compile(
    r"(?i:node\b|listconfig|dictconfig|full_key|_type\b|omegaconf|mismatched|token |lexer|antlr|struct|"
    r"interpolation [kr]|traceback|<class|object at|hydra\.cc)|NoneType|Union\[|[a-z]Error\b|EOF|"
    r"\bdict\b|\bNone\b|\bint\b|\bstr\b|\bbool\b"
)
"""Words of Hydra, OmegaConf and Python that no message contains."""


@functools.cache
def composed(verb: str, given: tuple[str, ...]) -> DictConfig:
    """Return the composed settings of a verb, not loaded."""
    command = load_verb(verb)
    overrides = adapt([*NEEDED.get(verb, ()), *given], command.schema, CONF)
    with hydra_application(CONF, command.schema, overrides) as application:
        found = application.config_loader.load_configuration(verb.replace("-", "_"), overrides, RunMode.RUN)
    OmegaConf.set_struct(found, False)
    del found["hydra"]
    return found


def settings(verb: str) -> list[tuple[tuple[str, ...], str]]:
    """Return every key of a verb, dotted, groups included, with the choices that it appears in.

    The keys of a model, which several verbs have, are those of `infer` alone, and so are all but OWN of the studio.
    """
    found = {}
    for given in map(tuple, CASES.get(verb, [[]])):
        plain = OmegaConf.to_container(composed(verb, given))
        assert isinstance(plain, dict)
        leaves = flat({str(key): value for key, value in plain.items()})
        groups = {key.rpartition(".")[0] for key in leaves if "." in key}
        own = [key for key in (*leaves, *groups) if verb == "infer" or key.partition(".")[0] != "model"]
        own = [key for key in own if key in OWN.get(verb, own)]
        found |= {key: given for key in own if key not in found}
    return [(given, key) for key, given in found.items()]


def find_problems(message: str, key: str) -> list[str]:
    """Return the message if it is more than a line, names no part of the key, or has an inner word."""
    is_named = key.rpartition(".")[2] in message or key.partition(".")[0] in message
    is_plain = len(message.splitlines()) == 1 and len(message) < 1000 and not INNER.search(message)
    return [] if is_named and is_plain else [message]


def refusal(override: str) -> str | None:
    """Return why infer refuses an override."""
    try:
        compose_config(load_verb("infer"), "infer", [override])
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("share", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_a_wrong_value_is_one_plain_sentence(verb, share):
    """Of each key one value in `share` is set after composing, as Hydra does; other keys get other ones."""
    command, problems = load_verb(verb), []
    for number, (given, key) in enumerate(settings(verb)):
        for value in VALUES[number % share :: share]:
            config = copy.deepcopy(composed(verb, given))
            try:
                (override,) = parse_overrides(adapt([f"{key}={value}"], command.schema, CONF))
            except UserError as error:
                problems += find_problems(str(error), key)
                continue
            try:
                OmegaConf.update(config, key, override.value(), merge=True)
            except OmegaConfBaseException as error:  # as while composing
                problems += find_problems(explain_composition(error, command.schema, [f"{key}={value}"], CONF), key)
                continue
            try:
                command.load(config)
            except UserError as error:
                problems += find_problems(str(error), key)
            except Exception as error:
                problems.append(f"{key}={value}: {error!r}")
    assert not problems


@pytest.mark.parametrize("value", [*VALUES, *UNREADABLE])
@pytest.mark.parametrize(
    "key", ["seed", "story", "frames", "video", "csa.rate", "model.video", "model", "new", "+seed"]
)
def test_a_wrong_value_on_the_command_line_is_one_plain_sentence(key, value):
    message = refusal(f"{key}={value}")
    assert not message or not find_problems(message, key.lstrip("+"))


@pytest.mark.parametrize(
    ("given", "written", "value"),
    [
        ("frames=a.png", "frames='[a.png]'", ["a.png"]),
        ("frames='a b.png'", "frames='[a b.png]'", ["a b.png"]),
        ("frames='it\\'s.png'", None, ["it's.png"]),
        ("frames=图.png", "\"frames=['图.png']\"", ["图.png"]),
        ("frames=[a!.png,b.png]", None, ["a!.png", "b.png"]),
        ("story=[a.txt]", "story=a.txt", "a.txt"),
        ("story=a#b.txt", "\"story='a#b.txt'\"", "a#b.txt"),
        ("story=a(1).txt", "\"story='a(1).txt'\"", "a(1).txt"),
        ("story=故(1).txt", "\"story='故(1).txt'\"", "故(1).txt"),
        ("story='it's.txt'", None, "it's.txt"),
        ("story=$HOME!.txt", None, "$HOME!.txt"),
        ("story=${x", None, "${x"),
        ("story=a,b", "\"story='a,b'\"", "a,b"),
    ],
)
def test_the_form_that_a_message_suggests_gives_the_value(given, written, value):
    key, message = given.partition("=")[0], refusal(given)
    assert message is not None
    assert written is None or written in message
    start = max(message.rfind(f"{word} {quote}{key}=") for word in ("write", "or") for quote in ("", "'", '"'))
    override = shlex.split(message[start:])[1]
    assert getattr(compose_config(load_verb("infer"), "infer", [override]), key) == value


@pytest.mark.parametrize("key", ["frames", "font"])
@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a b",
        "a,b",
        "it's",
        '"',
        "\\",
        "\\'",
        "a\\",
        "$HOME",
        "`x`",
        "!!",
        "[a]",
        "{a}",
        "x=y",
        "故",
        "",
        "null",
        "3",
    ],
)
def test_what_is_quoted_is_read_as_the_same_text(key, text):
    for written in (write_setting(key, [text]), in_shell(key, f"[{quote(text)}]")):
        (word,) = shlex.split(written)
        (override,) = parse_overrides([word])
        assert override.value() == [text]


@pytest.mark.parametrize(
    ("override", "story"),
    [("story=故事.txt", "故事.txt"), ("story=故 事.txt", "故 事.txt"), ("story=a=b.txt", "a=b.txt")],
)
def test_text_beyond_ascii_needs_no_quotes(override, story):
    assert compose_config(load_verb("infer"), "infer", [override]).story == story


def test_lists_and_sweeps_beyond_ascii_need_no_quotes():
    schema = load_verb("infer").schema
    assert compose_config(load_verb("infer"), "infer", ["frames=[一.png,二.png]"]).frames == ["一.png", "二.png"]
    (swept,) = parse_overrides(adapt(["story=一.txt,二.txt"], schema, CONF))
    assert list(swept.sweep_string_iterator()) == ["'一.txt'", "'二.txt'"]

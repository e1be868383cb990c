import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from storydiffusion.attention.variants import VARIANTS
from storydiffusion.commands import VERBS, load_verb
from storydiffusion.config import InferConfig, TrainConfig, closest_key, keys, load
from storydiffusion.config.command_line import compose_config
from storydiffusion.config.miniature import RECIPES
from storydiffusion.config.model import load_model_config
from storydiffusion.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*overrides: str) -> InferConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load(InferConfig, compose("infer", list(overrides)))


@pytest.mark.parametrize("model", [file.stem for file in (CONF / "model").glob("*.yaml")])
@pytest.mark.parametrize("csa", [file.stem for file in (CONF / "csa").glob("*.yaml")])
def test_every_choice_of_the_groups_loads(model, csa):
    config = composed(f"model={model}", f"csa={csa}")
    assert config.model.name == model
    assert config.csa.variant == (csa if csa in VARIANTS else "eq2")  # the others are settings of eq2


def test_values_that_are_null_are_the_models_and_the_run_folder_is_named_after_the_story():
    config = composed("model=sdxl", "steps=7", "story=some/where/tale.yaml")
    assert (config.steps, config.guidance_scale, config.height, config.width) == (7, 5.0, 768, 768)
    assert config.run_dir == "runs/tale"


@pytest.mark.parametrize(
    ("override", "needs"),
    [
        ("+model.typo=1", ["'model.typo'", "'model.dtype'"]),
        ("+rate=0.3", ["'rate'", "'csa.rate'"]),
        ("~seed", ["seed"]),
        ("seed=abc", ["seed", "abc"]),
        ("seed=true", ["seed"]),
        ("seed=1.5", ["seed", "1.5"]),
        ("seed=null", ["seed"]),
        ("model.steps=[1]", ["model.steps"]),
        ("run_dir=${nowhere}", ["run_dir", "nowhere"]),
        ("seed=-1", ["seed=-1"]),
        ("seed=4294967296", ["seed=4294967296"]),
        ("steps=0", ["steps=0"]),
        ("model.steps=0", ["model.steps=0"]),
        ("steps=1001", ["steps=1001"]),
        ("guidance_scale=-1", ["guidance_scale=-1"]),
        ("guidance_scale=nan", ["guidance_scale=nan"]),
        ("height=100", ["height=100", "96", "104"]),
        ("width=8192", ["width=8192"]),
        ("height=0", ["height=0"]),
        ("noise=none", ["noise=none", "shared"]),
        ("model.dtype=int8", ["model.dtype=int8", "bfloat16"]),
        ("model.device=tpu", ["model.device=tpu", "cuda"]),
        ("model.offload=disk", ["model.offload=disk", "sequential"]),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(override, needs):
    with pytest.raises(UserError) as error:
        composed(override)
    for need in needs:
        assert need in str(error.value)
    assert "\n" not in str(error.value)


def test_offload_and_cpu_do_not_go_together():
    with pytest.raises(UserError, match=r"model\.offload=model needs model\.device=cuda"):
        composed("model.offload=model", "model.device=cpu")


def test_every_key_of_the_yaml_is_in_the_schema_and_the_other_way_round():
    loaded = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(InferConfig)))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose("infer"))
    assert isinstance(plain, dict)
    assert set(plain) == set(loaded)


MAY_BE_ABSENT = {
    "ModelConfig": {"video"},
    "VideoConfig": {"sparse_control"},
    "MakeShardsConfig": {
        "csv",
        "videos",
        "video",
        "caption",
        "id",
        "clips",
        "seed",
        "frames",
        "size",
        "fps",
        "edition",
    },
}
"""Schema → keys that some choices of a group leave out: these alone have a default outside conf/, null."""


def schemas(schema: type) -> Iterator[type]:
    yield schema
    for hint in get_type_hints(schema, include_extras=True).values():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part) and isinstance(part, type):
                yield from schemas(part)


@pytest.mark.parametrize("verb", VERBS)
def test_values_live_in_the_yaml_alone(verb):
    for schema in (*schemas(load_verb(verb).schema), *RECIPES.values(), TrainConfig):
        defaults = {each.name: each.default for each in fields(schema) if each.default is not MISSING}
        assert not [each.name for each in fields(schema) if each.default_factory is not MISSING]
        assert set(defaults) == MAY_BE_ABSENT.get(schema.__name__, set())
        assert set(defaults.values()) <= {None}


SPELLINGS = [
    ("off", "off"),
    ("false", "off"),
    ("no", "off"),
    ("No", "off"),
    ("on", "on"),
    ("True", "on"),
    ("yes", "on"),
]


@pytest.mark.parametrize(("written", "meant"), [*SPELLINGS, ("auto", "auto")])
def test_a_switch_takes_every_spelling_of_on_and_off(written, meant, tmp_path):
    assert composed(f"video={written}").video == meant
    assert OmegaConf.create(f"video: {written}").video in (True, False, "auto")  # as an experiment's YAML reads it
    assert load(InferConfig, OmegaConf.create({**_plain(), **yaml.safe_load(f"video: {written}")})).video == meant


@pytest.mark.parametrize(
    ("written", "meant"), [("off", False), ("no", False), ("false", False), ("on", True), ("yes", True)]
)
@pytest.mark.parametrize("key", ["captions", "overwrite"])
def test_true_and_false_take_on_and_off(key, written, meant):
    assert getattr(composed(f"{key}={written}"), key) is meant


def test_a_group_with_the_choice_off_takes_false():
    assert compose_config(load_verb("infer"), "infer", ["csa=false"]) == composed("csa=off")
    with pytest.raises(UserError, match=r"csa has no choice 'true'.* choose one of algorithm1"):
        compose_config(load_verb("infer"), "infer", ["csa=true"])


@pytest.mark.parametrize(
    ("verb", "override", "sentence"),
    [
        ("train", "experiment=papr", "experiment has no choice 'papr': did you mean 'paper'? Choose one of "),
        ("infer", "csa=eq3", "csa has no choice 'eq3': did you mean 'eq2'? Choose one of "),
        (
            "infer",
            "experiment=paper",
            "experiment/paper.yaml selects recipe, which this command does not have: it is for train",
        ),
        ("train", "experiment=ablation_regions", "it is for infer"),
    ],
)
def test_a_wrong_choice_is_answered_with_the_closest_or_its_command(verb, override, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        compose_config(load_verb(verb), verb, [override])


def test_the_closest_key_is_found_whole_or_by_its_last_part():
    assert closest_key("sead", InferConfig) == "seed"
    assert closest_key("modle.pth", InferConfig) == "model.path"
    assert closest_key("varian", InferConfig) == "csa.variant"


def test_keys_are_dotted_and_cover_dataclasses_inside():
    @dataclass
    class Inner:
        x: int

    @dataclass
    class Outer:
        inner: Inner
        y: float | None

    Outer.__annotations__["inner"] = Inner
    assert keys(Outer) == ["inner", "inner.x", "y"]


def test_ranges_refuse_nan():
    with pytest.raises(UserError):
        load(InferConfig, OmegaConf.create({**_plain(), "guidance_scale": math.nan}))


def _plain() -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose("infer"))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.mark.parametrize("file", sorted((CONF / "model").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_model_loads_under_its_own_name_and_of_a_pinned_revision(file):
    config = load_model_config(file.stem)
    assert config.name == file.stem
    assert config.path.startswith("package://") or re.fullmatch("[0-9a-f]{40}", str(config.revision))

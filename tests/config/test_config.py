import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from storydiffusion.config import InferConfig, closest_key, keys, load
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
    assert config.csa.variant == csa


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

"""The values that experiments and bare commands compose to are those recorded under the former names of the keys."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from storydiffusion.config.command_line import CONF
from storydiffusion.config.renamed import KEYS, VALUES

RECORDED = json.loads((Path(__file__).parent / "composed.json").read_text(encoding="utf-8"))
NEEDED = {"paper": ["data.shards=somewhere"], "trained": ["run_dir=runs/trained"]}
BARE = {"infer": [], "train": [], "train sd15_animatediff": ["model=sd15_animatediff"]}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def present_name(key: str) -> str:
    for old in sorted(KEYS, key=len, reverse=True):
        if key == old or key.startswith(f"{old}."):
            return KEYS[old] + key.removeprefix(old)
    return key


@pytest.mark.parametrize("name", RECORDED)
def test_every_experiment_composes_to_the_recorded_values(name):
    experiment = VALUES["experiment"].get(name, name)
    overrides = BARE[name] if name in BARE else [f"experiment={experiment}", *NEEDED.get(name, [])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.to_container(compose(RECORDED[name]["verb"], overrides), resolve=True)
    assert isinstance(composed, dict)
    found = flatten({str(key): value for key, value in composed.items()})
    for old, value in RECORDED[name]["config"].items():
        key = present_name(old)
        expected = VALUES.get(key, {}).get(str(value), value)
        assert found[key] == expected, key

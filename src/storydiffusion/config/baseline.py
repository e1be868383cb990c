"""conf/baseline/*.yaml: methods that keep a character by a picture of it, the paper's baselines for images."""

import dataclasses
from typing import Any

from omegaconf import OmegaConf

from storydiffusion.config.loading import check_choice, check_range, load


@dataclasses.dataclass
class IPAdapterConfig:
    """IP-Adapter, by diffusers."""

    kind: str
    weights: str  # a folder, or a hub id such as owner/name@revision
    file: str  # in it: the adapter's weights, .safetensors or .bin
    image_encoder: str  # in it: the folder of the image encoder that the adapter reads
    scale: float  # of the attention to the picture; 0: it has no say
    portraits: dict[str, str] | None  # character → file; null: the model draws them by their descriptions

    def __post_init__(self) -> None:
        check_range("baseline.scale", self.scale, 0, 10)


@dataclasses.dataclass
class PhotoMakerConfig:
    """PhotoMaker, version 1."""

    kind: str
    weights: str  # a folder, or a hub id such as owner/name@revision
    file: str  # in it: .bin or .safetensors
    text_steps: float  # fraction of the steps that go by the text alone
    words: dict[str, str] | None  # character → the word of its description that stands for it; a benchmark knows them
    portraits: dict[str, str] | None  # character → file, or folder of several; null: drawn by their descriptions

    def __post_init__(self) -> None:
        check_range("baseline.text_steps", self.text_steps, 0, 1)


BASELINES: dict[str, type] = {"ip_adapter": IPAdapterConfig, "photomaker": PhotoMakerConfig}


def load_baseline_config(composed: Any) -> IPAdapterConfig | PhotoMakerConfig:
    """Of the class that its key `kind` names."""
    kind = str(dict(composed).get("kind"))
    check_choice("baseline.kind", kind, tuple(BASELINES))
    return load(BASELINES[kind], OmegaConf.create(dict(composed)), "baseline.")

"""conf/baseline/*.yaml: the paper's image baselines, which keep a character by a reference image."""

import dataclasses
from typing import Any

from storydiffusion.config.loading import check_range, load_choice


@dataclasses.dataclass
class IPAdapterConfig:
    """IP-Adapter, by diffusers."""

    kind: str
    weights: str  # a folder, or a hub id such as owner/name@revision
    file: str  # the adapter's weights in it, .safetensors or .bin
    image_encoder: str  # folder of the adapter's image encoder in it
    scale: float  # of the attention to the image; 0: none
    portraits: dict[str, str] | None  # character → file; null: generated from the descriptions

    def __post_init__(self) -> None:
        check_range("baseline.scale", self.scale, 0, 10)


@dataclasses.dataclass
class PhotoMakerConfig:
    """PhotoMaker, version 1."""

    kind: str
    weights: str  # a folder, or a hub id such as owner/name@revision
    file: str  # the weights in it, .bin or .safetensors
    text_steps: float  # fraction of the steps conditioned on text only
    words: dict[str, str] | None  # character → class word of its description; a benchmark knows them
    portraits: dict[str, str] | None  # character → file, or folder of several; null: generated from the descriptions

    def __post_init__(self) -> None:
        check_range("baseline.text_steps", self.text_steps, 0, 1)


BASELINES: dict[str, type] = {"ip_adapter": IPAdapterConfig, "photomaker": PhotoMakerConfig}


def load_baseline_config(composed: Any) -> IPAdapterConfig | PhotoMakerConfig:
    """Load the baseline as the class that its key `kind` names."""
    return load_choice(BASELINES, composed, "baseline", by="kind")

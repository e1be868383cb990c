"""Damaged JSON in a model folder, which libraries read: one sentence that names the file, never another error."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import read_json, read_origin
from storydiffusion.loaders.schedulers import load_scheduler
from storydiffusion.loaders.text_to_image import get_networks, load_network, load_tokenizer
from storydiffusion.models.image_encoders import load_image_encoder
from storydiffusion.models.motion_adapters import load_motion_adapter
from storydiffusion.models.predictor_files import load_predictor, save_predictor
from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor
from storydiffusion.storyworld.attribute_classifier import AttributeClassifier


def load_part(name: str) -> Callable[[Path], Any]:
    return lambda folder: load_network(get_networks(folder)[name], folder, name, torch.float32)


FILES: dict[str, Callable[[Path], Any]] = {
    "model_index.json": get_networks,
    "storydiffusion.json": read_origin,
    "unet/config.json": load_part("unet"),
    "vae/config.json": load_part("vae"),
    "text_encoder/config.json": load_part("text_encoder"),
    "scheduler/scheduler_config.json": lambda folder: load_scheduler(folder, "DDIMScheduler"),
    "tokenizer/tokenizer.json": load_tokenizer,
    "tokenizer/tokenizer_config.json": load_tokenizer,
    "motion_adapter/config.json": lambda folder: load_motion_adapter(folder / "motion_adapter"),
    "image_encoder/config.json": lambda folder: load_image_encoder(str(folder / "image_encoder")),
    "image_encoder/preprocessor_config.json": lambda folder: load_image_encoder(str(folder / "image_encoder")),
    "dinov2/preprocessor_config.json": lambda folder: load_image_encoder(str(folder / "dinov2")),
    "predictor/config.json": lambda folder: load_predictor(folder / "predictor"),
    "attribute_classifier/config.json": lambda folder: AttributeClassifier.load(folder / "attribute_classifier"),
}
UNREADABLE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "100,000 lists": lambda data: b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": lambda data: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a list": lambda data: b"[]",
    "a number": lambda data: b"7",
    "not UTF-8": lambda data: b"\xff\xfe" + data,
    "a pickle": lambda data: b"\x80\x04N.",
}
WRONG = (None, "x", -1, 0, 10**9, 10**30, 1e300, [], [[1]], {"a": {"b": 1}}, True, [1, "x"])


@pytest.fixture(scope="module")
def whole(tiny_video_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every part."""
    from transformers import Dinov2Config, Dinov2Model

    folder = shutil.copytree(tiny_video_model, tmp_path_factory.mktemp("whole") / "model")
    sizes: dict[str, Any] = {
        "image_width": 16,
        "width": 16,
        "layers": 1,
        "heads": 2,
        "head_width": 8,
        "context_width": 16,
    }
    with torch.random.fork_rng():
        save_predictor(SemanticMotionPredictor(**sizes), sizes, folder / "predictor")
        AttributeClassifier((4, 4)).save(folder / "attribute_classifier")
        Dinov2Model(
            Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28)
        ).save_pretrained(folder / "dinov2")
    normal = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "image_encoder" / "preprocessor_config.json").write_text(json.dumps(normal))
    (folder / "dinov2" / "preprocessor_config.json").write_text(json.dumps({**normal, "crop_size": {"height": 28}}))
    for load in FILES.values():
        load(folder)
    return folder


@pytest.fixture
def damage(whole: Path):
    """Returns a function that loads the folder with other content of one file, which is put back afterwards."""
    kept: dict[Path, bytes] = {}

    def load(name: str, content: bytes) -> Any:
        file = whole / name
        kept.setdefault(file, file.read_bytes())
        file.write_bytes(content)
        return FILES[name](whole)

    yield load
    for file, content in kept.items():
        file.write_bytes(content)


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("name", FILES)
def test_an_unreadable_file_is_named(damage, whole, name, kind):
    with pytest.raises(UserError) as error:
        damage(name, UNREADABLE[kind]((whole / name).read_bytes()))
    assert str(whole / name) in str(error.value)
    assert "again" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def places(value: Any) -> list[tuple[Any, ...]]:
    """Return the paths of all values inside plain data."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:2]
    deeper = [(key, *rest) for key, child in items if isinstance(child, dict | list) for rest in places(child)]
    return [(key,) for key, _ in items] + deeper


def replaced(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    data = json.loads(json.dumps(data))
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return data


@pytest.mark.parametrize("name", [name for name in FILES if name != "tokenizer/tokenizer.json"])
def test_a_wrong_value_at_any_place_is_accepted_or_named(damage, whole, name):
    """Every place gets one of the wrong values in turn."""
    data = read_json(whole / name)
    for number, place in enumerate(places(data)):
        changed = json.dumps(replaced(data, place, WRONG[number % len(WRONG)])).encode()
        with suppress(UserError):
            damage(name, changed)


def test_numbers_that_other_tools_write_are_accepted(damage, whole):
    """DPM-Solver's bound, and the window of a tokenizer without one."""
    for name, key, number in (
        ("scheduler/scheduler_config.json", "lambda_min_clipped", float("-inf")),
        ("tokenizer/tokenizer_config.json", "model_max_length", int(1e30)),
    ):
        data = json.loads((whole / name).read_text())
        damage(name, json.dumps({**data, key: number}).encode())


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"-1" + b"0" * 30])
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("/config.json")])
def test_a_number_that_no_network_has_is_named(damage, whole, name, number):
    content = (whole / name).read_bytes().replace(b"{", b'{"dropout": ' + number + b",", 1)
    with pytest.raises(UserError) as error:
        damage(name, content)
    assert str(whole / name) in str(error.value)

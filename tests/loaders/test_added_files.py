"""Files that users have: one file of all weights, variants, another VAE. Each is loaded exactly or named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.text_to_image import load_story_model
from tests.helpers.single_file import build_original_state, write_single_file
from tests.loaders.test_text_to_image import UNET, config

PARTS = ("unet", "vae", "text_encoder")


def states(folder: Path, **changes) -> dict[str, dict[str, torch.Tensor]]:
    pipe = load_story_model(resolve_model(config(folder, **changes))).pipe
    return {part: getattr(pipe, part).state_dict() for part in PARTS}


def assert_equal(found: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, torch.Tensor]]) -> None:
    for part in PARTS:
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(found[part][name], tensor) for name, tensor in expected[part].items()), part


@pytest.fixture
def architecture(tiny_model, tmp_path) -> Path:
    """A model folder without weights."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(tiny_model, tmp_path / "architecture", ignore=ignore)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_gives_the_weights_of_its_folder(tiny_model, architecture, tmp_path, suffix):
    file = write_single_file(tiny_model, tmp_path / f"whole{suffix}")
    model = resolve_model(config(architecture, single_file=str(file)))
    assert model.origin == "pretrained"
    assert model.weights == {"single_file": file}
    assert len(model.checksums) == 1
    assert_equal(states(architecture, single_file=str(file)), states(tiny_model))


@pytest.mark.parametrize("name", ["model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_in.bias"])
def test_a_single_file_that_lacks_a_tensor_is_named(tiny_model, architecture, tmp_path, name):
    state = {key: value.contiguous() for key, value in build_original_state(tiny_model).items() if key != name}
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="lacks tensors of") as error:
        states(architecture, single_file=str(tmp_path / "part.safetensors"))
    assert str(tmp_path / "part.safetensors") in str(error.value)


def test_a_single_file_without_text_encoder_is_named_even_where_the_folder_has_one(tiny_model, tmp_path):
    state = {k: v.contiguous() for k, v in build_original_state(tiny_model).items() if "cond_stage" not in k}
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"cannot read .*part\.safetensors as .*text_encoder"):
        states(tiny_model, single_file=str(tmp_path / "part.safetensors"))


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_no_code_in_a_checkpoint_is_run(architecture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, "bomb.ckpt")
    with pytest.raises(UserError, match=r"cannot read bomb\.ckpt"):
        states(architecture, single_file="bomb.ckpt")
    assert not Path("exploded").exists()


DAMAGE = {
    "empty": lambda data: b"", "truncated": lambda data: data[: len(data) // 2], "a list": lambda data: b"[]",
    "a pickle": lambda data: b"\x80\x04N.", "text": lambda data: b"<html>not found</html>",
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("key", ["single_file", "vae", "lora", "textual_inversion"])
def test_a_damaged_file_is_named(tiny_model, tmp_path, key, suffix, kind):
    whole = tmp_path / f"whole{suffix}"
    save_file({"a": torch.zeros(64)}, whole) if suffix == ".safetensors" else torch.save({"a": torch.zeros(64)}, whole)
    file = tmp_path / f"damaged{suffix}"
    file.write_bytes(DAMAGE[kind](whole.read_bytes()))
    value = {"lora": {str(file): 1.0}, "textual_inversion": {"toy": str(file)}}.get(key, str(file))
    with pytest.raises(UserError) as error:
        resolve_model(config(tiny_model, **{key: value}))
    assert str(file) in str(error.value)
    assert "again" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["single_file", "lora", "textual_inversion"])
def test_a_missing_file_and_another_format_are_named(tiny_model, tmp_path, key):
    for name, problem in (("nowhere.safetensors", "is not a file"), ("notes.txt", "has another format")):
        (tmp_path / "notes.txt").write_text("text")
        file = str(tmp_path / name)
        value = {"lora": {file: 1.0}, "textual_inversion": {"toy": file}}.get(key, file)
        with pytest.raises(UserError, match=problem) as error:
            resolve_model(config(tiny_model, **{key: value}))
        assert f"model.{key}" in str(error.value)


def add_half(folder: Path, keep_full: bool) -> None:
    """Write the fp16 variant of every network, with other values than the full files."""
    for file in [file for part in PARTS for file in (folder / part).glob("*.safetensors")]:
        half = {name: (tensor * 2).half() for name, tensor in load_file(file).items()}
        save_file(half, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        if not keep_full:
            file.unlink()


@pytest.mark.parametrize(
    ("keep_full", "variant", "dtype", "is_half"),
    [
        (True, "auto", "float32", False), (True, "auto", "float16", True), (True, "fp16", "float32", True),
        (True, None, "float16", False), (False, "auto", "float32", True), (False, "auto", "float16", True),
    ],
)  # fmt: skip
def test_the_variant_is_the_one_asked_for(tiny_model, tmp_path, keep_full, variant, dtype, is_half):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    add_half(folder, keep_full)
    full = load_file(tiny_model / UNET)["conv_in.weight"].to(getattr(torch, dtype))
    model = resolve_model(config(folder, variant=variant, dtype=dtype))
    assert all(("fp16" in name) == is_half for name in model.weights)
    found = load_story_model(model).pipe.unet.conv_in.weight
    torch.testing.assert_close(found, full * 2 if is_half else full, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("keep_full", "variant"), [(False, None), (True, "bf16")])
def test_a_variant_that_a_folder_lacks_is_named(tiny_model, tmp_path, keep_full, variant):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    add_half(folder, keep_full)
    with pytest.raises(UserError, match=f"model.variant={variant or 'null'}, but .* has weights of .*fp16"):
        resolve_model(config(folder, variant=variant))


def build_vae(tiny_model: Path, folder: Path) -> Path:
    """Write another VAE of the same architecture, with its own scaling factor."""
    shutil.copytree(tiny_model / "vae", folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 3 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "scaling_factor": 0.5}))
    return folder


def test_another_vae_replaces_that_of_the_model(tiny_model, tmp_path):
    vae = build_vae(tiny_model, tmp_path / "vae")
    model = resolve_model(config(tiny_model, vae=str(vae)))
    assert model.weights["vae/diffusion_pytorch_model.safetensors"].parent == vae
    pipe = load_story_model(model).pipe
    assert pipe.vae.config.scaling_factor == 0.5
    expected = load_file(vae / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pipe.vae.state_dict().items())


def test_a_vae_in_one_file_of_the_original_layout_replaces_that_of_the_model(tiny_model, tmp_path):
    state = build_original_state(tiny_model)
    prefix = "first_stage_model."
    own = {key.removeprefix(prefix): tensor * 3 for key, tensor in state.items() if key.startswith(prefix)}
    torch.save({"state_dict": own}, tmp_path / "vae-ft-mse.ckpt")
    found, plain = states(tiny_model, vae=str(tmp_path / "vae-ft-mse.ckpt")), states(tiny_model)
    assert_equal(found, {**plain, "vae": {name: tensor * 3 for name, tensor in plain["vae"].items()}})


def write_other_unet(tiny_model: Path, folder: Path) -> Path:
    """Write a U-Net of other values in diffusers' format."""
    shutil.copytree(tiny_model / "unet", folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("place", ["inside", "elsewhere"])
def test_another_unet_replaces_that_of_the_folder(tiny_model, tmp_path, place):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    other = write_other_unet(tiny_model, folder / "other" if place == "inside" else tmp_path / "other")
    source = "other" if place == "inside" else str(other)
    model = resolve_model(config(folder, unet=source))
    assert model.weights["unet/diffusion_pytorch_model.safetensors"] == other / "diffusion_pytorch_model.safetensors"
    assert model.config.additions == {"unet": source}
    expected = states(tiny_model)
    expected["unet"] = {name: tensor * 2 for name, tensor in expected["unet"].items()}
    assert_equal(states(folder, unet=source), expected)


def test_a_unet_that_there_is_not_is_named(tiny_model):
    with pytest.raises(UserError, match=r"model\.unet=nowhere is not a local folder"):
        resolve_model(config(tiny_model, unet="nowhere"))


def test_a_unet_of_another_architecture_is_named(tiny_model):
    with pytest.raises(UserError, match=r"vae"):
        states(tiny_model, unet="vae")

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from storydiffusion.config import ModelConfig
from storydiffusion.config.model import load_model_config
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import read_origin, resolve_model
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.loaders.text_to_image import load_story_model

UNET = "unet/diffusion_pytorch_model.safetensors"
PARTS_WEIGHTS = {
    "unet": UNET, "vae": "vae/diffusion_pytorch_model.safetensors", "text_encoder": "text_encoder/model.safetensors",
}  # fmt: skip


def config(path, defaults: str = "sd15", **changes) -> ModelConfig:
    """Return the settings of a tiny model: those of a file in conf/model, smaller and on the CPU."""
    small: dict[str, Any] = {"dtype": "float32", "device": "cpu", "steps": 4, "height": 64, "width": 64}
    small |= {"path": str(path), "revision": None, "scheduler": "model"}
    return replace(load_model_config(defaults), **{**small, **changes})


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_folder_becomes_a_pipeline_with_the_needed_parts_only(tiny_model):
    model = load_story_model(resolve_model(config(tiny_model)))
    assert model.pipe.safety_checker is None
    assert model.pipe.feature_extractor is None
    assert not model.pipe.unet.training
    stored = load_file(tiny_model / UNET)
    assert all(torch.equal(value, stored[name]) for name, value in model.pipe.unet.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_network_is_in_the_dtype_asked_for(tiny_model, dtype):
    pipe = load_story_model(resolve_model(config(tiny_model, dtype=dtype))).pipe
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert network.dtype == getattr(torch, dtype)


def test_ddim_keeps_the_noise_schedule_and_never_clips(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    stored = json.loads(file.read_text()) | {"_class_name": "PNDMScheduler", "beta_end": 0.02}
    stored.pop("clip_sample")
    file.write_text(json.dumps(stored))
    (folder / "model_index.json").write_text(
        (folder / "model_index.json").read_text().replace("DDIMScheduler", "PNDMScheduler")
    )
    assert type(load_story_model(resolve_model(config(folder))).pipe.scheduler).__name__ == "PNDMScheduler"
    scheduler = load_story_model(resolve_model(config(folder, scheduler="ddim"))).pipe.scheduler
    assert type(scheduler).__name__ == "DDIMScheduler"
    assert scheduler.config.beta_end == 0.02
    assert scheduler.config.clip_sample is False
    assert scheduler.config.steps_offset == 1


def test_image_encoders_and_other_riches_of_a_folder_are_left_alone(folder):
    (folder / "image_encoder").mkdir()
    (folder / "image_encoder" / "model.safetensors").write_bytes(b"not even looked at")
    assert load_story_model(resolve_model(config(folder))).pipe.image_encoder is None
    assert set(resolve_model(config(folder)).weights) == set(PARTS_WEIGHTS.values())


def test_the_origin_is_what_the_folder_says(folder):
    assert read_origin(folder) == "random"
    (folder / "storydiffusion.json").unlink()
    assert read_origin(folder) == "pretrained"
    (folder / "storydiffusion.json").write_text('{"kind": "magic"}')
    with pytest.raises(UserError, match="'magic'"):
        read_origin(folder)


@pytest.mark.parametrize("file", PARTS_WEIGHTS.values())
@pytest.mark.parametrize("keep", [0, 5, -100])
def test_a_truncated_file_is_named(folder, file, keep):
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[:keep])
    with pytest.raises(UserError, match="truncated") as error:
        load_story_model(resolve_model(config(folder)))
    assert str(folder / file) in str(error.value)


@pytest.mark.parametrize("part", PARTS_WEIGHTS)
@pytest.mark.parametrize("spoil", ["shape", "missing", "unexpected"])
def test_weights_that_do_not_fit_are_refused(folder, part, spoil):
    file = folder / PARTS_WEIGHTS[part]
    tensors = load_file(file)
    name = sorted(tensors)[0]
    if spoil == "shape":
        tensors[name] = torch.zeros(1, *tensors[name].shape, 2)
    elif spoil == "missing":
        del tensors[name]
    else:
        tensors["strange.weight"] = torch.zeros(2)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        load_story_model(resolve_model(config(folder)))
    assert str(folder / part) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_position_ids_of_old_clip_files_are_no_reason_to_refuse(folder):
    file = folder / PARTS_WEIGHTS["text_encoder"]
    tensors = load_file(file) | {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(tensors, file, metadata={"format": "pt"})
    load_story_model(resolve_model(config(folder)))


def test_a_missing_weights_file_is_named(folder):
    (folder / UNET).unlink()
    with pytest.raises(UserError, match="unet contains no"):
        load_story_model(resolve_model(config(folder)))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", "{"),
        ("model_index.json", "[]"),
        ("model_index.json", '{"_class_name": "FluxPipeline"}'),
        ("unet/config.json", "{"),
        ("scheduler/scheduler_config.json", "{"),
        ("tokenizer/tokenizer.json", "{"),
    ],
)
def test_a_damaged_description_is_one_sentence(folder, file, content):
    (folder / file).write_text(content)
    with pytest.raises(UserError) as error:
        load_story_model(resolve_model(config(folder)))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"has no model_index\.json"):
        load_story_model(resolve_model(config(tmp_path)))


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere", "a/b/c", "nowhere"])
def test_a_path_that_is_neither_folder_nor_hub_id_is_refused_without_the_network(path):
    with pytest.raises(UserError, match="not a local folder"):
        find_model_folder(path, None)


def test_a_model_that_the_package_lacks_is_named():
    with pytest.raises(UserError, match="'nosuchmodel'"):
        find_model_folder("package://nosuchmodel", None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_asked_for_but_not_there(tiny_model):
    with pytest.raises(UserError, match=r"model\.device=cuda"):
        load_story_model(resolve_model(config(tiny_model, device="cuda")))
    with pytest.raises(UserError, match=r"model\.offload=model needs a CUDA device"):
        load_story_model(resolve_model(config(tiny_model, device="auto", offload="model")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs a CUDA device")
@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
def test_offloading_gives_the_same_images(tiny_model, offload):
    pipe = load_story_model(resolve_model(config(tiny_model, device="cuda", offload=offload))).pipe
    offloaded = pipe("a cat", height=64, width=64, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    plain = load_story_model(resolve_model(config(tiny_model, device="cuda"))).pipe(
        "a cat", height=64, width=64, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    )
    assert offloaded.images[0].tobytes() == plain.images[0].tobytes()

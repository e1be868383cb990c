"""Motion modules from folders and from AnimateDiff's own files, at tiny size; the published sizes without weights."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from diffusers import DDIMScheduler, MotionAdapter, PNDMScheduler
from safetensors.torch import load_file, save_file

from storydiffusion.errors import UserError
from storydiffusion.models.motion_adapters import (
    FIRST_ENCODING,
    animatediff_scheduler,
    check_fits,
    convert_original,
    detect_version,
    load_motion_adapter,
    new_motion_adapter,
)

UNET = {"block_out_channels": (16, 24), "layers_per_block": 1, "norm_num_groups": 8}
VERSIONS = {"v1": (24, False), "v2": (32, True), "v3": (32, False)}
PARAMETERS = {"v1": 417_137_600, "v2": 453_209_280, "v3": 417_137_600}
WEIGHTS = "diffusion_pytorch_model.safetensors"
BLOCK = "transformer_blocks.0."
LAYOUT = {  # one motion module: AnimateDiff's key after `temporal_transformer.` → diffusers' key
    "norm.weight": "norm.weight", "norm.bias": "norm.bias",
    "proj_in.weight": "proj_in.weight", "proj_in.bias": "proj_in.bias",
    "proj_out.weight": "proj_out.weight", "proj_out.bias": "proj_out.bias",
    **{
        f"{BLOCK}attention_blocks.{i}.{key}": f"{BLOCK}attn{i + 1}.{key}"
        for i in (0, 1) for key in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
    },
    **{f"{BLOCK}attention_blocks.{i}.pos_encoder.pe": f"{BLOCK}pos_embed.pe" for i in (0, 1)},
    **{f"{BLOCK}norms.{i}.{key}": f"{BLOCK}norm{i + 1}.{key}" for i in (0, 1) for key in ("weight", "bias")},
    **{f"{BLOCK}{key}": f"{BLOCK}{key}" for key in (
        "ff.net.0.proj.weight", "ff.net.0.proj.bias", "ff.net.2.weight", "ff.net.2.bias"
    )},
    f"{BLOCK}ff_norm.weight": f"{BLOCK}norm3.weight", f"{BLOCK}ff_norm.bias": f"{BLOCK}norm3.bias",
}  # fmt: skip


def tiny_adapter(version="v2") -> MotionAdapter:
    length, mid_block = VERSIONS[version]
    torch.manual_seed(0)
    return MotionAdapter(
        block_out_channels=(16, 24), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=8,
        motion_max_seq_length=length, use_motion_mid_block=mid_block,
    ).eval()  # fmt: skip


def original_state(adapter: MotionAdapter, prefix="") -> dict[str, torch.Tensor]:
    """The adapter in AnimateDiff's format."""
    state = {}
    for name, module in adapter.named_modules():
        if type(module).__name__ == "AnimateDiffTransformer3D":
            tensors = module.state_dict()
            state |= {f"{prefix}{name}.temporal_transformer.{k}": tensors[v].clone() for k, v in LAYOUT.items()}
    return state


def sinusoids(length: int, width: int) -> torch.Tensor:
    """(1, length, width): sine and cosine in turn, of wavelengths from 2π to 10000 · 2π (1706.03762, section 3.5)."""
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[None]


def assert_identical(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_published_sizes(version):
    length, mid_block = VERSIONS[version]
    with torch.device("meta"):
        state = original_state(MotionAdapter(motion_max_seq_length=length, use_motion_mid_block=mid_block))
    for key, value in state.items():
        if "pos_encoder" in key:  # of these the values are checked
            state[key] = sinusoids(*value.shape[1:])
    adapter = convert_original(state)
    assert detect_version(state) == version
    assert sum(weight.numel() for weight in adapter.parameters()) == PARAMETERS[version]
    assert sum(value.numel() for key, value in state.items() if "pos_encoder" not in key) == PARAMETERS[version]


@pytest.mark.parametrize("wrap", ["plain", "module. prefix", "training checkpoint", "safetensors", "description"])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_animatediff_file_and_back(tmp_path, version, wrap):
    adapter = tiny_adapter(version)
    state: dict = original_state(adapter, "module." if wrap == "module. prefix" else "")
    file = tmp_path / ("mm.safetensors" if wrap == "safetensors" else "mm.ckpt")
    if wrap == "safetensors":
        save_file(state, file)
    elif wrap == "training checkpoint":
        torch.save({"epoch": 3, "global_step": 100, "state_dict": state}, file)
    else:
        torch.save(state | ({"animatediff_config": "about"} if wrap == "description" else {}), file)
    loaded = load_motion_adapter(file, unet_config=UNET)
    assert_identical(loaded, adapter)
    assert dict(loaded.config) == dict(adapter.config)
    assert not loaded.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_file_in_half_precision(tmp_path, dtype):
    adapter = tiny_adapter()
    torch.save({key: value.half() for key, value in original_state(adapter).items()}, tmp_path / "mm.ckpt")
    loaded = load_motion_adapter(tmp_path / "mm.ckpt", dtype=dtype, unet_config=UNET).state_dict()
    for key, value in adapter.state_dict().items():
        expected = value if key.endswith("pe") else value.half()  # the encodings are computed anew, exactly
        assert torch.equal(loaded[key], expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_diffusers_folder(tmp_path, dtype):
    adapter = tiny_adapter("v3")
    adapter.save_pretrained(tmp_path)
    loaded = load_motion_adapter(str(tmp_path), dtype=dtype)
    assert_identical(loaded, adapter.to(dtype))
    assert loaded.dtype == dtype
    assert not loaded.training


KEY = "down_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.0.norms.1.weight"


def spoilt(problem: str, state: dict) -> str:
    """Damage the state dict in place; return the wrong key."""
    if problem == "missing":
        del state[KEY]
    elif problem == "shape":
        state[KEY] = torch.zeros(25)
    elif problem == "no tensor":
        state[KEY] = 3.0
    elif problem == "unexpected":
        state["conv_in.weight"] = torch.zeros(2)
        return "conv_in.weight"
    elif problem == "one module too many":
        more = KEY.replace("modules.0", "modules.1")
        state[more] = state[KEY]
        return more
    elif problem == "position encoding":
        key = KEY.replace("norms.1.weight", "attention_blocks.1.pos_encoder.pe")
        state[key] = state[key] + 1
        return key
    elif problem == "length":
        state[FIRST_ENCODING] = torch.zeros(1, 16, 16)
        return FIRST_ENCODING
    elif problem == "no motion module":
        for key in [key for key in state if "pos_encoder" in key]:
            del state[key]
        return FIRST_ENCODING
    return KEY


@pytest.mark.parametrize(
    "problem",
    ["missing", "shape", "no tensor", "unexpected", "one module too many", "position encoding", "length",
     "no motion module"],
)  # fmt: skip
def test_the_first_wrong_key_is_named(tmp_path, problem):
    state = original_state(tiny_adapter())
    key = spoilt(problem, state)
    torch.save(state, tmp_path / "mm.ckpt")
    with pytest.raises(UserError) as error:
        load_motion_adapter(tmp_path / "mm.ckpt", unet_config=UNET)
    assert key in str(error.value)
    assert str(tmp_path / "mm.ckpt") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_for_another_unet_is_refused(tmp_path):
    torch.save(original_state(tiny_adapter()), tmp_path / "mm.ckpt")
    with pytest.raises(UserError, match=r"mid_block.*\(24,\).*needs \(1280,\)"):
        load_motion_adapter(tmp_path / "mm.ckpt")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    file = tmp_path / f"mm{suffix}"
    state = original_state(tiny_adapter())
    if suffix == ".ckpt":
        torch.save(state, file)
    else:
        save_file(state, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError) as error:
        load_motion_adapter(file, unet_config=UNET)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


class Payload:
    """An object as in a malicious file: unpickling it would create the named file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    state = original_state(tiny_adapter()) | {"extra": Payload(tmp_path / "run")}
    torch.save(state, tmp_path / "mm.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="could run code") as error:
        load_motion_adapter(tmp_path / "mm.ckpt", unet_config=UNET)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {1: torch.zeros(2)}, {"state_dict": None}])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "mm.ckpt")
    with pytest.raises(UserError, match="named tensors"):
        load_motion_adapter(tmp_path / "mm.ckpt")


@pytest.mark.parametrize("spoil", ["missing", "unexpected", "shape", "truncated", "config", "no weights", "pickle"])
def test_a_damaged_folder_is_refused(tmp_path, spoil):
    folder = tmp_path / "adapter"
    tiny_adapter().save_pretrained(folder)
    file = folder / WEIGHTS
    tensors = load_file(file)
    name = "mid_block.motion_modules.0.proj_in.weight"
    if spoil == "missing":
        del tensors[name]
    elif spoil == "unexpected":
        tensors["mid_block.strange"] = torch.zeros(2)
    elif spoil == "shape":
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, file, metadata={"format": "pt"})
    if spoil == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif spoil == "config":
        (folder / "config.json").write_text("{")
    elif spoil in ("no weights", "pickle"):
        file.unlink()
    if spoil == "pickle":
        torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError) as error:
        load_motion_adapter(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    if spoil in ("missing", "shape"):
        assert name in str(error.value)


@pytest.mark.parametrize("source", ["/nowhere/mm.ckpt", "./nowhere", "mm_sd_v15_v2.ckpt", "a/b/c"])
def test_a_missing_source_is_refused_without_the_network(source):
    with pytest.raises(UserError, match="no motion adapter at"):
        load_motion_adapter(source)


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/nothing.*abc123") as error:
        load_motion_adapter("nobody/nothing", revision="abc123")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", [1, (1, 2)])
def test_a_new_adapter_fits_and_survives_its_folder(tmp_path, layers):
    unet = UNET | {"layers_per_block": layers, "attention_head_dim": (2, 3)}
    adapter = new_motion_adapter(unet, frames=8)
    check_fits(adapter, unet)
    projections = [weight for name, weight in adapter.named_parameters() if ".proj_out." in name]
    assert len(projections) == 2 * sum(type(m).__name__ == "AnimateDiffTransformer3D" for m in adapter.modules())
    assert all(weight.abs().sum() == 0 for weight in projections)
    adapter.save_pretrained(tmp_path)
    loaded = load_motion_adapter(tmp_path)
    assert_identical(loaded, adapter)
    check_fits(loaded, unet)  # JSON has turned tuples into lists


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("block_out_channels", {"block_out_channels": (16, 32)}),
        ("block_out_channels", {"block_out_channels": (16, 24, 24)}),
        ("motion_layers_per_block", {"layers_per_block": 2}),
        ("motion_norm_num_groups", {"norm_num_groups": 4}),
    ],
)
def test_an_adapter_for_another_unet_is_refused(name, change):
    with pytest.raises(UserError, match=name):
        check_fits(tiny_adapter(), UNET | change)


def test_animatediffs_schedule():
    stable_diffusion = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler = animatediff_scheduler(stable_diffusion)
    assert isinstance(scheduler, DDIMScheduler)
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(scheduler.alphas_cumprod, stable_diffusion.alphas_cumprod, atol=1e-2)
    assert scheduler.config.clip_sample is False
    assert scheduler.config.steps_offset == 1
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))


@pytest.mark.parametrize("other", [{"prediction_type": "v_prediction"}, {"num_train_timesteps": 500}])
def test_a_model_that_does_not_fit_animatediffs_schedule_is_refused(other):
    with pytest.raises(UserError, match="keep the model's own scheduler"):
        animatediff_scheduler(DDIMScheduler(**other))


def test_a_mid_block_distinguishes_v2_from_v3(tmp_path):
    """A folder whose config.json is that of another version."""
    tiny_adapter("v2").save_pretrained(tmp_path / "v2")
    shutil.copytree(tmp_path / "v2", tmp_path / "mixed")
    config = json.loads((tmp_path / "mixed" / "config.json").read_text()) | {"use_motion_mid_block": False}
    (tmp_path / "mixed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="mid_block"):
        load_motion_adapter(tmp_path / "mixed")

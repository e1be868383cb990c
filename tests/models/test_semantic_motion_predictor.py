"""The paper's size; the initial interpolation; what it can learn; IP-Adapter-plus's weights; invalid input."""

import pytest
import torch
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from safetensors.torch import save_file
from torch import nn

from storydiffusion.errors import UserError
from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor, interpolate

TINY = {
    "image_width": 24, "width": 80, "layers": 2, "heads": 1, "head_width": 64, "context_width": 20,
}  # fmt: skip
IMAGE_TOKENS = {"resampler": 10, "pooled": 1, "patch": 10}
TOKENS = {"resampler": 3, "pooled": 1, "patch": 10}


def tiny(tokens="resampler", **changes):
    torch.manual_seed(0)
    return SemanticMotionPredictor(tokens, **(TINY | {"tokens_per_frame": TOKENS[tokens]} | changes))


def features(tokens="resampler", batch=2, seed=1):
    shape = (2, batch, IMAGE_TOKENS[tokens], TINY["image_width"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).unbind()


def perturbed(predictor, scale=0.1):
    """Return the predictor with no weight zero, as if trained."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter += scale * torch.randn_like(parameter)
    return predictor


def test_has_the_papers_size():
    with torch.device("meta"):
        predictor = SemanticMotionPredictor()
        start = torch.empty(1, 257, 1280)
        motion = predictor(start, start, 16)
    assert sum(parameter.numel() for parameter in predictor.layers.parameters()) == 92_375_040
    assert motion.tokens.shape == (1, 16, 16, 1024)
    assert motion.context.shape == (1, 16, 16, 768)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("frames", [2, 5, 16, 32])
def test_untrained_it_returns_the_interpolation(tokens, frames):
    predictor = tiny(tokens)
    start, end = features(tokens)
    motion = predictor(start, end, frames)
    first, last = predictor.encode(start), predictor.encode(end)
    assert motion.tokens.shape == (2, frames, TOKENS[tokens], TINY["width"])
    assert motion.context.shape == (2, frames, TOKENS[tokens], TINY["context_width"])
    for i in range(frames):  # the paper counts from 1
        expected = first + i / (frames - 1) * (last - first)
        torch.testing.assert_close(motion.tokens[:, i], expected, rtol=0, atol=1e-6)
    assert torch.equal(motion.tokens[:, 0], first)
    assert torch.equal(motion.tokens[:, -1], last)
    assert torch.equal(motion.tokens, interpolate(first, last, frames))


def test_without_layers_it_is_the_interpolation_through_the_same_projection():
    whole, bare = tiny(), tiny(layers=0)
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith(("layers.", "positions."))})
    start, end = features()
    assert torch.equal(bare(start, end, 7).context, whole(start, end, 7).context)
    bare(start, end, 7).context.square().sum().backward()
    assert all(parameter.grad is not None for parameter in bare.parameters())  # DDP waits for each


def test_what_it_adds_reaches_the_tokens_and_the_context():
    predictor = perturbed(tiny())
    start, end = features()
    motion = predictor(start, end, 6)
    added = motion.tokens - interpolate(predictor.encode(start), predictor.encode(end), 6)
    assert added.flatten(2).norm(dim=-1).min() > 0.1
    projected = predictor.context_norm(predictor.context_projection(motion.tokens))
    torch.testing.assert_close(motion.context, projected)


def test_the_context_has_the_scale_of_text_tokens():
    start, end = features(batch=8)
    for scale in (0.1, 10):
        context = tiny()(start * scale, end * scale, 8).context
        torch.testing.assert_close(context.square().mean(-1), torch.ones(context.shape[:-1]), rtol=0.05, atol=0)


def test_every_frame_attends_to_both_boundary_frames_and_every_token():
    predictor = perturbed(tiny("patch"))
    start, end = (x.requires_grad_() for x in features("patch"))
    tokens = predictor(start, end, 5).tokens
    for frame in range(5):
        for given in (start, end):
            (gradient,) = torch.autograd.grad(tokens[0, frame].square().sum(), given, retain_graph=True)
            assert gradient[0].norm(dim=-1).min() > 0
            assert gradient[1].norm() == 0  # clips of a batch are independent


def test_the_order_of_time_and_of_slots_matters():
    predictor = perturbed(tiny("patch"))
    start, end = features("patch")
    there, back = predictor(start, end, 6).tokens, predictor(end, start, 6).tokens
    assert (there - back.flip(1)).abs().max() > 0.01
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert (predictor(start[:, order], end[:, order], 6).tokens - there[:, :, order]).abs().max() > 0.01
    predictor.positions.slot.data.zero_()
    there = predictor(start, end, 6).tokens
    torch.testing.assert_close(predictor(start[:, order], end[:, order], 6).tokens, there[:, :, order])


def test_positions_depend_on_the_fraction_of_the_clip_not_on_the_number_of_frames():
    positions = tiny().positions
    torch.testing.assert_close(positions(9)[::2], positions(5), rtol=0, atol=1e-5)
    for frames in (2, 8, 32):
        times = positions(frames)[:, 0]
        assert torch.cdist(times, times)[~torch.eye(frames, dtype=torch.bool)].min() > 0.5


@pytest.mark.parametrize("tokens", TOKENS)
def test_the_gradient_reaches_every_parameter_after_one_step(tokens):
    predictor = tiny(tokens)
    start, end = features(tokens)
    target = torch.randn(2, 6, TOKENS[tokens], TINY["context_width"])
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=1e-3)
    for _ in range(2):  # in the first step the branches' final zero projections block the gradient
        optimizer.zero_grad()
        (predictor(start, end, 6).context - target).square().mean().backward()
        optimizer.step()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad.abs().max() > 1e-9, name


def test_learns_a_motion_whose_middle_is_no_mixture_of_its_boundary_frames():
    start, end = features("patch", batch=4)
    predictor = tiny("patch", layers=1)
    middle = predictor.encode(features("patch", batch=4, seed=5)[0]).detach()
    optimizer = torch.optim.AdamW(predictor.layers.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = (predictor(start, end, 5).tokens[:, 2] - middle).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_gradient_checkpointing_changes_nothing_but_memory():
    start, end = features()
    gradients = []
    for checkpointing in (False, True):
        predictor = perturbed(tiny())
        predictor.gradient_checkpointing = checkpointing
        predictor(start, end, 4).context[..., 0].sum().backward()
        gradients.append([parameter.grad for parameter in predictor.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_runs_in_bfloat16():
    start, end = (x.bfloat16() for x in features())
    motion = perturbed(tiny()).bfloat16()(start, end, 16)
    assert motion.context.dtype == torch.bfloat16
    assert motion.context.isfinite().all()


def ip_adapter_weights(context_width=TINY["context_width"], layers=4):
    """Random weights in the layout of h94/IP-Adapter's ip-adapter-plus_sd15, at tiny size."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"latents": (1, 3, 64), "proj_in.weight": (64, 24), "proj_in.bias": (64,)}
    shapes |= {"proj_out.weight": (context_width, 64)}
    shapes |= dict.fromkeys(("proj_out.bias", "norm_out.weight", "norm_out.bias"), (context_width,))
    for n in range(layers):
        attention = {"to_q.weight": (64, 64), "to_kv.weight": (128, 64), "to_out.weight": (64, 64)}
        attention |= {f"{norm}.{part}": (64,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        mlp = {"0.weight": (64,), "0.bias": (64,), "1.weight": (256, 64), "3.weight": (64, 256)}
        shapes |= {f"layers.{n}.0.{name}": shape for name, shape in attention.items()}
        shapes |= {f"layers.{n}.1.{name}": shape for name, shape in mlp.items()}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(file, weights):
    """Write both parts as on the hub: nested in a .bin, with dots in a .safetensors."""
    unet = {"1.to_k_ip.weight": torch.zeros(2, 2)}
    if file.suffix == ".bin":
        torch.save({"image_proj": weights, "ip_adapter": unet}, file)
    else:
        parts = {"image_proj": weights, "ip_adapter": unet}
        save_file({f"{part}.{k}": v for part, tensors in parts.items() for k, v in tensors.items()}, file)
    return file


def test_starts_as_ip_adapter_plus(tmp_path):
    weights = ip_adapter_weights()
    reference = UNet2DConditionLoadersMixin()._convert_ip_adapter_image_proj_to_diffusers(weights, False)
    predictor = tiny()
    start, end = features()
    predictor.load_ip_adapter(write(tmp_path / "ip-adapter-plus.safetensors", weights))
    context = predictor(start, end, 5).context
    torch.testing.assert_close(context[:, 0], reference(start), rtol=0, atol=1e-4)
    torch.testing.assert_close(context[:, -1], reference(end), rtol=0, atol=1e-4)


def test_both_formats_load_alike(tmp_path):
    loaded = []
    for suffix in (".bin", ".safetensors"):
        predictor = tiny()
        predictor.load_ip_adapter(write(tmp_path / f"weights{suffix}", ip_adapter_weights()))
        loaded.append(predictor.state_dict())
    assert all(torch.equal(loaded[0][name], loaded[1][name]) for name in loaded[0])


def lacking(name):
    return {k: v for k, v in ip_adapter_weights().items() if k != name}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lacking("latents"), "lacks image_proj.latents"),
        (lacking("layers.3.1.3.weight"), "lacks image_proj.layers.3.1.3.weight"),
        (lacking("norm_out.bias"), "lacks image_proj.norm_out.bias"),
        (
            ip_adapter_weights() | {"latents": torch.zeros(1, 4, 64)},
            r"image_proj.latents .* \(1, 4, 64\).* \(1, 3, 64\)",
        ),
        (ip_adapter_weights(context_width=32), r"image_proj.proj_out.weight .*\(32, 64\).*\(20, 64\)"),
        (ip_adapter_weights(layers=5), "has image_proj.layers.4"),
        ({}, "has no image_proj"),
    ],
    ids=["latents", "mlp", "norm", "shape", "context width", "deeper", "empty"],
)
def test_refuses_other_weights_and_changes_nothing(tmp_path, weights, message):
    predictor = tiny()
    before = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    with pytest.raises(UserError, match=message):
        predictor.load_ip_adapter(write(tmp_path / "weights.bin", weights))
    assert all(torch.equal(tensor, before[name]) for name, tensor in predictor.state_dict().items())


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_refuses_a_damaged_or_missing_file(tmp_path, suffix):
    file = write(tmp_path / f"weights{suffix}", ip_adapter_weights())
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot read"):
        tiny().load_ip_adapter(file)
    with pytest.raises(UserError, match="is not a file"):
        tiny().load_ip_adapter(tmp_path / f"other{suffix}")


def test_refuses_a_file_that_would_run_code(tmp_path):
    torch.save({"image_proj": nn.Linear(2, 2)}, tmp_path / "weights.bin")
    with pytest.raises(UserError, match="cannot read"):
        tiny().load_ip_adapter(tmp_path / "weights.bin")


def test_ip_adapter_needs_the_resampler_and_room_for_it(tmp_path):
    file = write(tmp_path / "weights.bin", ip_adapter_weights())
    with pytest.raises(UserError, match="set tokens to resampler"):
        tiny("patch").load_ip_adapter(file)
    with pytest.raises(UserError, match=r"width is 48.*at least the resampler's 64"):
        tiny(width=48).load_ip_adapter(file)


@pytest.mark.parametrize("frames", [0, 1, 33, 4.0, True])
def test_refuses_other_numbers_of_frames(frames):
    with pytest.raises(UserError, match=f"frames is {frames}: .* 2 to 32"):
        tiny()(*features(), frames)


@pytest.mark.parametrize(
    ("tokens", "shape", "wanted"),
    [
        ("resampler", (2, 10, 32), r"\(B, M, 24\)"),
        ("resampler", (2, 24), r"\(B, M, 24\)"),
        ("pooled", (2, 10, 24), r"\(B, 1, 24\)"),
        ("patch", (2, 9, 24), r"\(B, 10, 24\)"),
    ],
)
def test_refuses_features_of_another_encoder(tokens, shape, wanted):
    with pytest.raises(UserError, match=wanted):
        tiny(tokens)(torch.zeros(shape), torch.zeros(shape), 4)


def test_refuses_start_and_end_of_different_shapes():
    with pytest.raises(UserError, match="give both alike"):
        tiny()(torch.zeros(1, 10, 24), torch.zeros(2, 10, 24), 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": "words"}, "tokens is 'words': choose one of resampler, pooled, patch"),
        ({"tokens": "pooled", "tokens_per_frame": 4}, "tokens_per_frame is 4 but tokens is pooled"),
        ({"heads": 0}, "heads is 0"),
        ({"width": 64.0}, "width is 64.0"),
        ({"layers": -1}, "layers is -1"),
        ({"frames": 1}, "frames is 1: choose a whole number, 2 or more"),
    ],
)
def test_refuses_other_settings(settings, message):
    with pytest.raises(UserError, match=message):
        SemanticMotionPredictor(**settings)

"""Both libraries' CLIP towers agree, see images as in training, and stay frozen; DINOv2, SigLIP and the registry."""

import json
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

import storydiffusion
from storydiffusion.errors import UserError
from storydiffusion.models.image_encoders import (
    IMAGE_ENCODERS,
    ClipImageEncoder,
    ImageEncoder,
    OpenClipImageEncoder,
    load_clip,
    load_image_encoder,
    register_image_encoder,
)
from storydiffusion.storyworld.images import to_tensor
from tests.helpers.world_model import build_world_model

MINIATURE = Path(storydiffusion.__file__).parent / "miniature" / "image_encoder"
WIDTH, LAYERS, PROJECTION = 32, 3, 12
VISION = {"image_size": 28, "patch_size": 14, "width": WIDTH, "layers": LAYERS, "head_width": 16, "mlp_ratio": 4.0}
TEXT = {"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    """Name of a tiny architecture that open_clip knows like its own."""
    file = tmp_path_factory.mktemp("open_clip") / "tiny-vit.json"
    file.write_text(json.dumps({"embed_dim": PROJECTION, "vision_cfg": VISION, "text_cfg": TEXT}))
    open_clip.add_model_config(file)
    return file.stem


@pytest.fixture(scope="module")
def clip(architecture):
    torch.manual_seed(0)
    return open_clip.create_model(architecture)


@pytest.fixture
def encoder(clip):
    return OpenClipImageEncoder(clip.visual)


def images(height=28, width=28, batch=2, seed=0):
    """Coarse coloured squares with noise, for resizing to keep and to smooth; no extremes, where libraries clip the
    overshoot of bicubic filters at different moments."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(80, 176, (batch, 3, 6, 6)).repeat(-(-height // 6), 2).repeat(-(-width // 6), 3)
    noisy = squares[:, :, :height, :width] + rng.integers(-20, 20, (batch, 3, height, width))
    return torch.from_numpy(noisy.astype(np.uint8))


def transformers_twin(tower):
    """A transformers CLIPModel whose image tower has the weights of an open_clip one."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=WIDTH // 16,
        image_size=28, patch_size=14, hidden_act="gelu",
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = CLIPConfig(projection_dim=PROJECTION)
    config.vision_config, config.text_config = vision, text
    model = CLIPModel(config)
    names = {
        "conv1.": "embeddings.patch_embedding.", "ln_pre.": "pre_layrnorm.", "ln_post.": "post_layernorm.",
        "transformer.resblocks.": "encoder.layers.", ".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.",
        ".attn.out_proj.": ".self_attn.out_proj.", ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.",
    }  # fmt: skip
    weights = {}
    for name, tensor in tower.state_dict().items():
        if name == "proj":
            model.visual_projection.weight.data.copy_(tensor.T)
        elif name in ("class_embedding", "positional_embedding"):
            weights["embeddings." + name.replace("positional_embedding", "position_embedding.weight")] = tensor
        elif ".attn.in_proj_" in name:
            prefix, _, part = name.replace("transformer.resblocks.", "encoder.layers.").partition(".attn.in_proj_")
            for projection, chunk in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                weights[f"{prefix}.self_attn.{projection}.{part}"] = chunk
        else:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            weights[name] = tensor
    result = model.vision_model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert {key for key in result.missing_keys if not key.endswith("position_ids")} == set()
    return model.eval()


def test_both_libraries_give_the_same_features(encoder):
    twin = ClipImageEncoder(transformers_twin(encoder.tower), encoder.tower.image_mean, encoder.tower.image_std)
    frames = images(40, 56)
    for kind, shape in (("hidden", (2, 5, WIDTH)), ("pooled", (2, 1, PROJECTION))):
        ours = encoder.features(frames, kind)
        assert ours.shape == shape
        assert ours.shape[-1] == encoder.widths[kind] == twin.widths[kind]
        torch.testing.assert_close(ours, twin.features(frames, kind), rtol=0, atol=1e-5)


def test_hidden_is_the_output_of_the_last_block_but_one(encoder):
    seen = []
    block = encoder.tower.transformer.resblocks[-2]
    hook = block.register_forward_hook(lambda module, args, output: seen.append(output))
    pooled = encoder.features(images(), "pooled")[:, 0]
    hook.remove()
    assert torch.equal(encoder.features(images(), "hidden"), seen[0])
    assert torch.equal(pooled, encoder.tower(encoder.preprocess(images())))


@pytest.mark.parametrize(("height", "width"), [(28, 28), (100, 60), (45, 101), (20, 24)])
def test_preprocesses_images_as_open_clip_does(encoder, height, width):
    frames = images(height, width)
    transform = open_clip.image_transform(
        28, is_train=False, mean=encoder.tower.image_mean, std=encoder.tower.image_std
    )
    theirs = torch.stack([transform(Image.fromarray(frame.permute(1, 2, 0).numpy())) for frame in frames])
    in_steps = (encoder.preprocess(frames) - theirs).abs() * encoder.get_buffer("std") * 255
    assert in_steps.max() < 1.6  # Pillow rounds to whole steps, after each of the two directions


def test_vit_h_14_has_the_published_size():
    with torch.device("meta"):
        tower = open_clip.create_model("ViT-H-14", device="meta").visual
        encoder = OpenClipImageEncoder(tower)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 632_076_800
    assert encoder.size == 224
    assert encoder.widths == {"hidden": 1280, "pooled": 1024}
    assert encoder.hidden(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 257, 1280)


def test_the_miniature_preprocesses_images_as_in_training():
    frames = images(128, 128)
    pixels = to_tensor(frames.permute(0, 2, 3, 1).numpy())
    encoder = ClipImageEncoder.load(MINIATURE)
    torch.testing.assert_close(encoder.preprocess(frames), pixels, rtol=0, atol=1e-6)
    _, tokens, width = encoder.features(frames).shape
    assert tokens in (64, 65)  # a class token is another
    assert encoder.widths["hidden"] == width


def test_features_are_those_of_transformers_own_model(tmp_path):
    folder = build_world_model(tmp_path) / "image_encoder"
    clip, encoder, frames = CLIPModel.from_pretrained(folder), ClipImageEncoder.load(folder), images(32, 32)
    with torch.no_grad():
        states = clip.vision_model(pixel_values=encoder.preprocess(frames), output_hidden_states=True)
        pooled = clip.visual_projection(states.pooler_output)
    assert encoder.features(frames).shape == (2, 5, 16)
    torch.testing.assert_close(encoder.features(frames), states.hidden_states[-2], rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.features(frames, "pooled")[:, 0], pooled, rtol=0, atol=1e-5)
    assert encoder.widths == {"hidden": 16, "pooled": 8}


def test_is_frozen_and_keeps_the_image_tower_alone(encoder, clip):
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert len(list(encoder.parameters())) == len(list(clip.visual.parameters()))
    trainable = torch.nn.Linear(WIDTH, 2)
    trainable(encoder.features(images())).sum().backward()
    assert trainable.weight.grad is not None


def test_features_come_in_the_dtype_of_the_weights(architecture):
    encoder = OpenClipImageEncoder(open_clip.create_model(architecture).visual).bfloat16()
    assert encoder.features(images()).dtype == torch.bfloat16


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_loads_a_local_file(tmp_path, architecture, clip, encoder, suffix):
    file = tmp_path / f"weights{suffix}"
    torch.save(clip.state_dict(), file) if suffix == ".bin" else save_file(clip.state_dict(), file)
    loaded = OpenClipImageEncoder.load(str(file), architecture)
    assert torch.equal(loaded.features(images()), encoder.features(images()))


@pytest.mark.parametrize("content", ["bytes", "lacking", "code"])
def test_refuses_a_file_that_does_not_fit(tmp_path, architecture, clip, content):
    file = tmp_path / "weights.bin"
    if content == "bytes":
        file.write_bytes(b"no weights")
    elif content == "lacking":
        torch.save({name: tensor for name, tensor in clip.state_dict().items() if name != "visual.proj"}, file)
    else:
        torch.save(clip, file)
    with pytest.raises(UserError, match=r"cannot load .*weights\.bin as the weights of tiny-vit"):
        OpenClipImageEncoder.load(str(file), architecture)


def test_an_unreachable_hub_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"cannot get ViT-H-14's weights laion2b_s32b_b79k from the hub: connect"
    ) as caught:
        OpenClipImageEncoder.load()
    assert "\n" not in str(caught.value)


def test_refuses_names_that_open_clip_does_not_know(architecture):
    with pytest.raises(UserError, match="no model 'ViT-Z'"):
        OpenClipImageEncoder.load(name="ViT-Z")
    with pytest.raises(UserError, match=r"nowhere\.bin is neither a file nor weights of ViT-H-14: .*laion2b_s32b_b79k"):
        OpenClipImageEncoder.load("nowhere.bin")


def test_refuses_a_folder_without_an_encoder(tmp_path):
    with pytest.raises(UserError, match="cannot load an image encoder"):
        ClipImageEncoder.load(tmp_path)


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(2, 3, 28, 28), images()[0], images().transpose(1, 3), images()[:0]],
    ids=["float", "one image", "channels last", "none"],
)
def test_refuses_what_is_not_a_batch_of_images(encoder, frames):
    with pytest.raises(UserError, match="give uint8 images"):
        encoder.features(frames)


def test_refuses_other_kinds_of_features(encoder):
    with pytest.raises(UserError, match="'words': choose one of hidden, pooled"):
        encoder.features(images(), "words")


SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
SIGLIP = {**SIZES, "intermediate_size": 64, "image_size": 28, "patch_size": 14}


def save(model, folder) -> nn.Module:
    model.eval().save_pretrained(folder)
    return model


def check_against(encoder: ImageEncoder, model, tokens: int) -> None:
    """Compare an encoder's features with the model's own hidden_states and pooler_output."""
    frames = images(40, 56)
    with torch.no_grad():
        states = model(pixel_values=encoder.preprocess(frames), output_hidden_states=True)
    assert encoder.features(frames).shape == (2, tokens, WIDTH)
    torch.testing.assert_close(encoder.features(frames), states.hidden_states[-2])
    torch.testing.assert_close(encoder.features(frames, "pooled")[:, 0], states.pooler_output)
    assert encoder.widths == {"hidden": WIDTH, "pooled": WIDTH}
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_dinov2_reads_the_crop_of_its_preprocessor(tmp_path):
    torch.manual_seed(0)
    model = save(Dinov2Model(Dinov2Config(**SIZES, image_size=42, patch_size=14)), tmp_path)
    assert load_image_encoder(str(tmp_path)).size == 42
    settings = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = load_image_encoder(str(tmp_path))
    assert encoder.size == 28
    torch.testing.assert_close(encoder.get_buffer("mean").flatten(), torch.tensor([0.4, 0.5, 0.6]))
    check_against(encoder, model, tokens=1 + 4)


@pytest.mark.parametrize("whole", [True, False], ids=["with the text tower", "image tower alone"])
def test_siglip_has_no_class_token(tmp_path, whole):
    torch.manual_seed(0)
    vision = SiglipVisionConfig(**SIGLIP)
    if whole:
        config = SiglipConfig()
        config.vision_config = vision
        config.text_config = SiglipTextConfig(**SIZES, intermediate_size=64, vocab_size=30)
        model = save(SiglipModel(config), tmp_path).vision_model
    else:
        model = save(SiglipVisionModel(vision), tmp_path)
    check_against(load_image_encoder(str(tmp_path)), model, tokens=4)


def test_siglip_needs_its_pooling_head(tmp_path):
    save(SiglipVisionModel(SiglipVisionConfig(**SIGLIP, vision_use_head=False)), tmp_path)
    with pytest.raises(UserError, match="no pooling head"):
        load_image_encoder(str(tmp_path))


def test_loads_clip_with_and_without_its_text_tower(tmp_path, encoder):
    whole = save(transformers_twin(encoder.tower), tmp_path / "whole")
    alone = CLIPVisionModelWithProjection(whole.config.vision_config)
    alone.config.projection_dim = PROJECTION
    alone.visual_projection = whole.visual_projection
    alone.vision_model = whole.vision_model
    save(alone, tmp_path / "alone")
    frames = images(40, 56)
    for kind in ("hidden", "pooled"):
        features = [load_image_encoder(str(tmp_path / name)).features(frames, kind) for name in ("whole", "alone")]
        assert torch.equal(*features)


def test_loads_open_clip_by_its_scheme(architecture):
    assert isinstance(load_image_encoder(f"open_clip://{architecture}/random"), OpenClipImageEncoder)
    with pytest.raises(UserError, match="open_clip://ViT-H-14 is not complete"):
        load_image_encoder("open_clip://ViT-H-14")


def test_a_model_type_without_support_is_named_with_those_supported(tmp_path):
    save(ViTModel(ViTConfig(**SIZES, intermediate_size=64)), tmp_path)
    known = "clip, convolutional_clip, clip_vision_model, dinov2, open_clip, siglip, siglip_vision_model"
    with pytest.raises(UserError, match=f"model of type vit, which is not supported: choose among {known}"):
        load_image_encoder(str(tmp_path))
    with pytest.raises(UserError, match=f"image encoder timm, which is not supported: choose among {known}"):
        load_image_encoder("timm://vit_base")
    with pytest.raises(UserError, match="model of type vit: give the folder of a CLIPModel"):
        load_clip(tmp_path)


class MeanColour(ImageEncoder):
    """An image encoder of a user's own: one token, the mean colour."""

    def __init__(self):
        super().__init__(nn.Identity(), 4, {"hidden": 3, "pooled": 3}, (0.0,) * 3, (1.0,) * 3)

    def hidden(self, pixels):
        return self.pooled(pixels)[:, None]

    def pooled(self, pixels):
        return pixels.mean((2, 3))


def test_a_registered_encoder_is_chosen_by_its_name(monkeypatch):
    monkeypatch.setattr("storydiffusion.models.image_encoders.registry.IMAGE_ENCODERS", dict(IMAGE_ENCODERS))

    @register_image_encoder("mean_colour")
    def load(source: str) -> ImageEncoder:
        assert source == "anything"
        return MeanColour()

    frames = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    features = load_image_encoder("mean_colour://anything").features(frames)
    torch.testing.assert_close(features, torch.full((2, 1, 3), 0.2))
    with pytest.raises(UserError, match="clip is already registered"):
        register_image_encoder("clip")

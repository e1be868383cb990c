"""The networks of evaluation: images and texts of both libraries' CLIPs, LPIPS, I3D, and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torchvision

from storydiffusion.errors import UserError
from storydiffusion.evaluation.metrics.clips import from_first, from_previous, token_distance
from storydiffusion.evaluation.metrics.embeddings import cosines
from storydiffusion.evaluation.networks import (
    MINIATURE,
    ImageTextEncoder,
    get_backbone_file,
    load_dreamsim,
    load_i3d,
    load_image_text_encoder,
    load_perceptual_distance,
)
from storydiffusion.loaders.sources import package_path
from tests.conftest import shipped_edition
from tests.helpers.world_model import build_world_model

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def miniature() -> ImageTextEncoder:
    return load_image_text_encoder(MINIATURE, CPU)


@pytest.fixture(scope="module")
def open_clip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny architecture registered with open_clip."""
    file = tmp_path_factory.mktemp("open_clip") / "tiny-pair.json"
    vision = {"image_size": 28, "patch_size": 14, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    file.write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(file)
    return file.stem


@pytest.fixture
def torch_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where torchvision looks for weights; empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path


def frames(count: int = 4, side: int = 64) -> np.ndarray:
    return RNG.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_the_miniature_matches_images_with_their_captions(miniature):
    world = shipped_edition()
    truths = [world.sample(5, i) for i in range(12)]
    images = np.stack([miniature.embed_image(world.render(truth, 128)) for truth in truths])
    texts = miniature.embed_texts([world.caption(truth, i) for i, truth in enumerate(truths)])
    assert cosines(images, texts).mean() > cosines(images, np.roll(texts, 1, axis=0)).mean() + 0.3
    assert miniature.label == "miniature"
    assert 1 < miniature.scale <= 100


def test_a_folder_of_transformers_embeds_as_its_own_model(tmp_path):
    from transformers import CLIPModel

    folder = build_world_model(tmp_path) / "image_encoder"
    encoder = load_image_text_encoder(str(folder), CPU)
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    texts = ["a girl is running in the park", "a cat"]
    ids = encoder.tokenize(texts)
    pixels = encoder.images.preprocess(torch.from_numpy(frames(2, 32)).permute(0, 3, 1, 2))
    with torch.no_grad():
        theirs = clip(input_ids=ids, pixel_values=pixels)
        image = encoder.images.pooled(pixels).numpy()
    np.testing.assert_allclose(cosines(encoder.embed_texts(texts), theirs.text_embeds.numpy()), 1, atol=1e-6)
    logits = encoder.scale * cosines(image, encoder.embed_texts(texts))
    np.testing.assert_allclose(logits, theirs.logits_per_image.diagonal().numpy(), rtol=1e-4)


def test_unknown_words_and_long_texts_are_found(miniature):
    assert miniature.unknown_words("a girl evokes dread in the park") == ["evokes", "dread"]
    assert miniature.length("a cat") == 4
    long = "a girl " * 40
    assert miniature.length(long) > miniature.window == shipped_edition().max_tokens
    assert miniature.tokenize([long]).shape == (1, miniature.window)


def test_open_clip_embeds_as_its_own_model(open_clip_name, tmp_path):
    torch.manual_seed(0)
    clip = open_clip.create_model(open_clip_name).eval()
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    encoder = load_image_text_encoder(f"open_clip://{open_clip_name}/{tmp_path / 'weights.pt'}", CPU)
    image, texts = frames(1, 28), ["a cat on the beach"]
    tokens = open_clip.get_tokenizer(open_clip_name)(texts)
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2) / 255
    pixels = torchvision.transforms.functional.normalize(pixels, clip.visual.image_mean, clip.visual.image_std)
    with torch.no_grad():
        theirs, words, scale = clip(pixels, tokens)
    np.testing.assert_allclose(cosines(encoder.embed_image(image[0])[None], theirs.numpy()), 1, atol=1e-6)
    np.testing.assert_allclose(cosines(encoder.embed_texts(texts), words.numpy()), 1, atol=1e-6)
    assert encoder.scale == pytest.approx(scale.item())
    assert encoder.length("a cat on the beach") == 7
    assert encoder.label == f"{open_clip_name}/{tmp_path / 'weights.pt'}"


def test_a_folder_sets_the_normalization_of_pixels(tiny_video_model, tmp_path):
    import shutil

    folder = tmp_path / "clip"
    shutil.copytree(tiny_video_model / "image_encoder", folder)
    with pytest.raises(UserError, match="no tokenizer"):
        load_image_text_encoder(str(folder), CPU)
    shutil.copytree(package_path("package://miniature/tokenizer"), tmp_path / "tokenizer")
    with pytest.raises(UserError, match="takes 8"):
        load_image_text_encoder(str(folder), CPU)
    from storydiffusion.models.image_encoders import ClipImageEncoder

    assert ClipImageEncoder.load(folder).get_buffer("mean").flatten().tolist() == [0.5] * 3
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0, 0.25, 1], "image_std": [1, 2, 3]}')
    assert ClipImageEncoder.load(folder).get_buffer("mean").flatten().tolist() == [0, 0.25, 1]
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="image_mean"):
        ClipImageEncoder.load(folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [("/no/such/folder", "encoder=/no/such/folder"), ("open_clip://ViT-H-14", "encoder=open_clip://ViT-H-14 is not")],
)
def test_a_missing_encoder_is_refused(source, said):
    with pytest.raises(UserError, match=said):
        load_image_text_encoder(source, CPU)


def test_lpips_over_time_agrees_with_torchmetrics(torch_home, miniature):
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), get_backbone_file("squeeze"))
    distance = load_perceptual_distance("squeeze", miniature)
    assert distance.label == "LPIPS squeeze"
    clip = frames(4)
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2) / 127.5 - 1
    first, neighbors = (LearnedPerceptualImagePatchSimilarity("squeeze", reduction="mean") for _ in range(2))
    first.update(pixels[:1].expand(3, -1, -1, -1), pixels[1:])
    neighbors.update(pixels[:-1], pixels[1:])
    seen = distance.prepare(clip)
    assert from_first(distance.compare, seen) == pytest.approx(first.compute().item(), abs=1e-5)
    assert from_previous(distance.compare, seen) == pytest.approx(neighbors.compute().item(), abs=1e-5)
    assert first.compute().item() > 1e-3
    with pytest.raises(UserError, match="too small"):
        distance.prepare(frames(2, 32))


def test_without_lpips_weights_the_encoder_is_used_and_named(torch_home, miniature):
    distance = load_perceptual_distance("auto", miniature)
    assert distance.label == "tokens of miniature"
    assert not distance.is_lpips
    clip = frames(2, 128)
    tokens = miniature.images.features(torch.from_numpy(clip).permute(0, 3, 1, 2), "hidden").numpy()
    assert distance.compare(*distance.prepare(clip)) == pytest.approx(token_distance(tokens[0], tokens[1]), rel=1e-6)
    with pytest.raises(UserError, match=r"lpips=vgg needs .*vgg16-\w+.pth"):
        load_perceptual_distance("vgg", miniature)


def test_damaged_lpips_weights_do_not_count_as_missing(torch_home, miniature):
    get_backbone_file("alex").write_bytes(b"half a fil")
    with pytest.raises(UserError, match="Download it again"):
        load_perceptual_distance("auto", miniature)


class MeanOverTime(torch.nn.Module):
    """A stand-in with the signature of an I3D file: (1, 3, F, 224, 224) → features."""

    def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert return_features
        assert not rescale
        assert not resize
        assert list(video.shape[-2:]) == [224, 224]
        return video.mean(dim=[2, 3, 4])


def test_i3d_takes_clips_in_its_range(tmp_path):
    file = tmp_path / "i3d.pt"
    torch.jit.script(MeanOverTime()).save(str(file))
    i3d = load_i3d(file, CPU)
    clip = np.zeros((10, 30, 40, 3), np.uint8)
    clip[..., 1] = 255
    np.testing.assert_allclose(i3d.embed(clip), [-1, 1, -1], atol=1e-5)
    assert i3d.label == "I3D i3d.pt"
    with pytest.raises(UserError, match="10 frames or more, not 9"):
        i3d.embed(clip[:9])


def test_a_file_that_is_not_i3d_is_refused(tmp_path):
    for name in ("missing.pt", "broken.pt"):
        (tmp_path / "broken.pt").write_bytes(b"no archive")
        with pytest.raises(UserError, match=name):
            load_i3d(tmp_path / name, CPU)


def test_without_its_package_dreamsim_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "dreamsim", None)  # as where it is not installed
    with pytest.raises(UserError, match="needs the package dreamsim"):
        load_dreamsim(tmp_path, CPU)

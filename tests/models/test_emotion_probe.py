"""The linear probe of emotions: what it computes, and every content of its file."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from storydiffusion.errors import UserError
from storydiffusion.evaluation.metrics.emotion import emotion_hits, emotion_scores, probabilities
from storydiffusion.models.emotion_probe import EmotionProbe, embed_images, load_probe
from storydiffusion.models.image_encoders import ImageEncoder


def pooled(weight: np.ndarray, bias: np.ndarray, normalize: bool = True) -> EmotionProbe:
    return EmotionProbe(weight, bias, "pooled", normalize, {})


def arrays(channels: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"weight": rng.normal(size=(8, channels)).astype(np.float32), "bias": rng.normal(size=8).astype(np.float32)}


def test_a_probe_reads_directions():
    probe = pooled(np.eye(8) * 2, np.arange(8.0))
    np.testing.assert_allclose(probe.logits(np.array([[0, 3.0, 0, 0, 0, 0, 0, 4]])), [[0, 2.2, 2, 3, 4, 5, 6, 8.6]])


def test_a_probe_trained_on_raw_embeddings_reads_their_length():
    images = np.array([[0, 3.0, 0, 0, 0, 0, 0, 4]])
    raw = pooled(np.eye(8) * 2, np.arange(8.0), normalize=False)
    np.testing.assert_allclose(raw.logits(images), images * 2 + np.arange(8.0))


def test_scores_are_those_of_a_linear_layer_and_a_softmax(tmp_path):
    """As EmoGen computes them: Linear(768, 8) on CLIP features as they are, softmax, mean of the target."""
    torch.manual_seed(0)
    layer, features = torch.nn.Linear(768, 8), torch.randn(5, 768) * 10
    np.savez(tmp_path / "probe.npz", weight=layer.weight.detach().numpy(), bias=layer.bias.detach().numpy())
    with torch.no_grad():
        expected = layer(features).softmax(-1)
    found = probabilities(load_probe(tmp_path / "probe.npz", normalize=False).logits(features.numpy()))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(emotion_scores(found, "fear").mean(), expected[:, 6].mean().item(), atol=1e-5)
    assert emotion_hits(found, "fear").mean() == (expected.argmax(-1) == 6).float().mean().item()


class Tokens(ImageEncoder):
    """An encoder whose class token is the mean of an image shrunk to 8 × 8, and whose other tokens are its pixels."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), 8, {"hidden": 3, "pooled": 3}, (0.5,) * 3, (0.5,) * 3)

    def hidden(self, pixels):
        return torch.cat([self.pooled(pixels)[:, None], pixels.flatten(2).mT], dim=1)

    def pooled(self, pixels):
        return pixels.mean((2, 3))


def test_features_are_the_embedding_or_the_tokens_of_a_coarse_grid():
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    embedding, tokens = (embed_images(Tokens(), images, features) for features in ("pooled", "tokens"))
    assert embedding.shape == (2, 3)
    assert tokens.shape == (2, 3 + 3 * 16)
    torch.testing.assert_close(tokens[:, :3], embedding)
    torch.testing.assert_close(tokens[:, 3:].unflatten(1, (3, 16)).mean(2), embedding)


def test_a_probe_is_the_same_from_both_formats(tmp_path):
    np.savez(tmp_path / "probe.npz", **arrays())
    save_file(arrays(), tmp_path / "probe.safetensors")
    for name in ("probe.npz", "probe.safetensors"):
        probe = load_probe(tmp_path / name)
        np.testing.assert_array_equal(probe.weight, arrays()["weight"])
        np.testing.assert_array_equal(probe.bias, arrays()["bias"])
        assert (probe.features, probe.normalize, probe.accuracy) == ("pooled", True, {})


@pytest.mark.parametrize("normalize", [True, False])
def test_a_saved_probe_says_how_it_was_trained_and_how_good_it_is(tmp_path, normalize):
    file, accuracy = tmp_path / "emotion_probe" / "model.safetensors", {"one character": 0.75, "sadness": 1.0}
    EmotionProbe(**arrays(), features="tokens", normalize=normalize, accuracy=accuracy).save(file)
    for given in (None, normalize):
        probe = load_probe(file, given)
        np.testing.assert_array_equal(probe.weight, arrays()["weight"])
        assert (probe.features, probe.normalize, probe.accuracy) == ("tokens", normalize, accuracy)
    with pytest.raises(UserError, match=f"emotion_normalize={str(not normalize).lower()}, but .* Leave"):
        load_probe(file, not normalize)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"normalize": "yes"}, "cannot be read"),
        ({"normalize": "1"}, "normalize"),
        ({"features": '"pixels"'}, "features is none of pooled, tokens"),
        ({"accuracy": "[1]"}, "accuracy"),
        ({"accuracy": '{"all": 2}'}, "accuracy"),
        ({"accuracy": '{"all": "much"}'}, "accuracy"),
        ({"accuracy": "[" * 100_000}, "cannot be read"),
    ],
)
def test_wrong_metadata_are_refused(tmp_path, metadata, said):
    save_file(arrays(), tmp_path / "probe.safetensors", metadata=metadata)
    with pytest.raises(UserError) as error:
        load_probe(tmp_path / "probe.safetensors")
    assert said in str(error.value)
    assert "probe.safetensors" in str(error.value)


def test_metadata_of_others_are_left_alone(tmp_path):
    save_file(arrays(), tmp_path / "probe.safetensors", metadata={"format": "pt", "normalize": json.dumps(False)})
    assert not load_probe(tmp_path / "probe.safetensors").normalize


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"weight": np.zeros((7, 5)), "bias": np.zeros(7)}, "(7, 5)"),
        ({"weight": np.zeros((8, 5)), "bias": np.zeros(5)}, "(5,)"),
        ({"weight": np.zeros(8), "bias": np.zeros(8)}, "(8,)"),
        ({"weight": np.zeros((8, 5))}, "bias"),
        ({"weight": np.zeros((8, 5), object), "bias": np.zeros(8)}, "cannot be read"),  # a pickle
    ],
)
def test_a_probe_that_does_not_fit_is_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "probe.npz", **arrays)
    with pytest.raises(UserError) as error:
        load_probe(tmp_path / "probe.npz")
    assert said in str(error.value)
    assert "probe.npz" in str(error.value)


def test_a_probe_of_another_format_or_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither"):
        load_probe(tmp_path / "probe.pt")
    with pytest.raises(UserError, match="No such file"):
        load_probe(tmp_path / "probe.npz")

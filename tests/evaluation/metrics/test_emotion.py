"""Emo-Score and Emo-A on cases known by hand, and the content of a probe's file."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from storydiffusion.errors import UserError
from storydiffusion.evaluation.metrics.emotion import (
    EMOTIONS,
    ZERO_SHOT_PROMPTS,
    LinearProbe,
    emotion_hits,
    emotion_scores,
    emotion_scores_of_two,
    load_probe,
    probabilities,
    zero_shot_logits,
)


def test_mikels_eight_in_the_order_of_the_data_set():
    assert EMOTIONS == ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
    assert all(name in prompt for name, prompt in zip(EMOTIONS, ZERO_SHOT_PROMPTS, strict=True))


def test_uniform_probabilities_score_an_eighth():
    chance = probabilities(np.zeros((3, 8)))
    np.testing.assert_allclose(emotion_scores(chance, "fear"), 0.125)


def test_the_score_is_the_probability_of_the_emotion_and_a_hit_where_it_is_the_largest():
    logits = np.log([[0.3, 0.4, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05], [0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.2001, 0.0999]])
    found = probabilities(logits + np.array([[5.0], [-9.0]]))  # what all logits share changes nothing
    np.testing.assert_allclose(emotion_scores(found, "awe"), [0.4, 0.2], atol=1e-9)
    np.testing.assert_array_equal(emotion_hits(found, "awe"), [1, 0])
    np.testing.assert_array_equal(emotion_hits(found, "fear"), [0, 1])


def test_zero_shot_is_the_softmax_of_scaled_cosines():
    prompts = np.eye(8) * 7
    logits = zero_shot_logits(np.array([[0, 0, 3.0, 0, 4, 0, 0, 0]]), prompts, scale=10)
    np.testing.assert_allclose(logits, [[0, 0, 6, 0, 8, 0, 0, 0]], atol=1e-12)


def test_a_probe_reads_directions():
    probe = LinearProbe(np.eye(8) * 2, np.arange(8.0))
    np.testing.assert_allclose(probe.logits(np.array([[0, 3.0, 0, 0, 0, 0, 0, 4]])), [[0, 2.2, 2, 3, 4, 5, 6, 8.6]])


def test_a_probe_is_the_same_from_both_formats(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"weight": rng.normal(size=(8, 5)).astype(np.float32), "bias": rng.normal(size=8).astype(np.float32)}
    np.savez(tmp_path / "probe.npz", **arrays)
    save_file(arrays, tmp_path / "probe.safetensors")
    for name in ("probe.npz", "probe.safetensors"):
        probe = load_probe(tmp_path / name, 5)
        np.testing.assert_array_equal(probe.weight, arrays["weight"])
        np.testing.assert_array_equal(probe.bias, arrays["bias"])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"weight": np.zeros((8, 4)), "bias": np.zeros(8)}, "(8, 5)"),
        ({"weight": np.zeros((7, 5)), "bias": np.zeros(7)}, "(7, 5)"),
        ({"weight": np.zeros((8, 5))}, "bias"),
        ({"weight": np.zeros((8, 5), object), "bias": np.zeros(8)}, "cannot be read"),  # a pickle
    ],
)
def test_a_probe_that_does_not_fit_is_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "probe.npz", **arrays)
    with pytest.raises(UserError) as error:
        load_probe(tmp_path / "probe.npz", 5)
    assert said in str(error.value)
    assert "probe.npz" in str(error.value)


def test_a_probe_of_another_format_or_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither"):
        load_probe(tmp_path / "probe.pt", 5)
    with pytest.raises(UserError, match="No such file"):
        load_probe(tmp_path / "probe.npz", 5)


def test_two_classes_sum_the_emotions_of_one_sign():
    found = np.array([[0.3, 0.1, 0.1, 0.1, 0.05, 0.15, 0.1, 0.1]])
    for emotion in ("amusement", "awe", "contentment", "excitement"):
        np.testing.assert_allclose(emotion_scores_of_two(found, emotion), [0.6])
    for emotion in ("anger", "disgust", "fear", "sadness"):
        np.testing.assert_allclose(emotion_scores_of_two(found, emotion), [0.4])


def test_a_probe_trained_on_raw_embeddings_reads_their_length():
    images = np.array([[0, 3.0, 0, 0, 0, 0, 0, 4]])
    raw = LinearProbe(np.eye(8) * 2, np.arange(8.0), normalize=False)
    np.testing.assert_allclose(raw.logits(images), images * 2 + np.arange(8.0))


def test_scores_are_those_of_a_linear_layer_and_a_softmax(tmp_path):
    """As EmoGen computes them: Linear(768, 8) on CLIP features as they are, softmax, mean of the target."""
    import torch

    torch.manual_seed(0)
    layer, features = torch.nn.Linear(768, 8), torch.randn(5, 768) * 10
    np.savez(tmp_path / "probe.npz", weight=layer.weight.detach().numpy(), bias=layer.bias.detach().numpy())
    with torch.no_grad():
        expected = layer(features).softmax(-1)
    found = probabilities(load_probe(tmp_path / "probe.npz", 768, normalize=False).logits(features.numpy()))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(emotion_scores(found, "fear").mean(), expected[:, 6].mean().item(), atol=1e-5)
    assert emotion_hits(found, "fear").mean() == (expected.argmax(-1) == 6).float().mean().item()

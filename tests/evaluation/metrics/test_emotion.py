"""Emo-Score and Emo-A on cases known by hand."""

import numpy as np

from storydiffusion.evaluation.metrics.emotion import (
    EMOTIONS,
    ZERO_SHOT_PROMPTS,
    emotion_hits,
    emotion_scores,
    emotion_scores_of_two,
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


def test_two_classes_sum_the_emotions_of_one_sign():
    found = np.array([[0.3, 0.1, 0.1, 0.1, 0.05, 0.15, 0.1, 0.1]])
    for emotion in ("amusement", "awe", "contentment", "excitement"):
        np.testing.assert_allclose(emotion_scores_of_two(found, emotion), [0.6])
    for emotion in ("anger", "disgust", "fear", "sadness"):
        np.testing.assert_allclose(emotion_scores_of_two(found, emotion), [0.4])

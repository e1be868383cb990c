"""Similarities of embeddings on cases known by hand, and CLIPScore against torchmetrics'."""

import numpy as np
import pytest
import torch

from storydiffusion.evaluation.metrics.embeddings import (
    clip_score,
    cosines,
    find_character_pairs,
    image_text_clip_scores,
    mean_over_pairs,
    pair_distance,
    pair_similarity,
    similarity_matrix,
)


def test_cosines_are_row_by_row_whatever_the_length():
    images, texts = np.array([[3.0, 0], [0, 2], [1, 1]]), np.array([[5.0, 0], [1, 0], [-1, -1]])
    np.testing.assert_allclose(cosines(images, texts), [1, 0, -1], atol=1e-12)
    np.testing.assert_allclose(image_text_clip_scores(images, texts), [2.5, 0, 0], atol=1e-12)


def test_clip_score_is_two_and_a_half_cosines_and_never_negative():
    np.testing.assert_allclose(clip_score(np.array([-0.5, 0, 0.2634, 1])), [0, 0, 0.6585, 2.5])


def test_character_similarity_is_the_mean_over_pairs_that_share_a_character():
    embeddings = np.array([[1.0, 0], [2, 0], [0, 1], [3, 4]])
    matrix = similarity_matrix(embeddings)
    np.testing.assert_allclose(matrix[3], [0.6, 0.6, 0.8, 1])
    together = find_character_pairs([["mia"]] * 4)
    assert len(together) == 6
    assert mean_over_pairs(matrix, together) == pytest.approx((1 + 0 + 0.6 + 0 + 0.6 + 0.8) / 6)
    apart = find_character_pairs([["mia"], ["bo"], [], ["bo", "mia"]])
    assert apart == [(0, 3), (1, 3)]
    assert mean_over_pairs(matrix, apart) == pytest.approx(0.6)
    assert pair_similarity(embeddings, apart) == pytest.approx(0.6)
    assert pair_distance(embeddings, apart) == pytest.approx(0.4)


def test_images_without_a_pair_have_no_similarity():
    assert mean_over_pairs(np.eye(2), find_character_pairs([["mia"], ["bo"]])) is None
    assert find_character_pairs([[], []]) == []


class Looked:
    """A CLIP for torchmetrics that looks features up by the first number of an image or text."""

    def __init__(self, embedded: np.ndarray, texts: np.ndarray) -> None:
        self.embedded, self.texts = torch.from_numpy(embedded), torch.from_numpy(texts)
        self.config = object()

    def to(self, _device: torch.device) -> "Looked":
        return self

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.embedded[pixels]

    def get_text_features(self, ids: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
        return self.texts[ids]


def test_clip_score_agrees_with_torchmetrics():
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    rng = np.random.default_rng(0)
    embedded, texts = rng.normal(size=(2, 16, 12))

    def processor(images=None, text=None, **_: object) -> dict[str, torch.Tensor]:
        ids = torch.tensor([int(x) for x in text] if text else [int(x[0, 0, 0]) for x in images])
        return {"pixel_values": ids, "input_ids": ids, "attention_mask": ids}

    images = [torch.full((3, 1, 1), i, dtype=torch.uint8) for i in range(16)]
    score, _ = _clip_score_update(images, [str(i) for i in range(16)], Looked(embedded, texts), processor)  # type: ignore[arg-type]
    ours = clip_score(cosines(embedded, texts))
    np.testing.assert_allclose(ours, 2.5 * np.maximum(score.numpy() / 100, 0), atol=1e-12)
    assert (score < 0).any()

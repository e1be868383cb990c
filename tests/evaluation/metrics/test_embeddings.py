"""Similarities of embeddings on cases known by hand, and CLIPScore against torchmetrics'."""

import numpy as np
import pytest
import torch

from storydiffusion.evaluation.metrics.embeddings import (
    clip_score,
    cosines,
    mean_over_pairs,
    pairs_of_a_character,
    similarity_matrix,
)


def test_cosines_are_row_by_row_and_know_no_length():
    pictures, texts = np.array([[3.0, 0], [0, 2], [1, 1]]), np.array([[5.0, 0], [1, 0], [-1, -1]])
    np.testing.assert_allclose(cosines(pictures, texts), [1, 0, -1], atol=1e-12)


def test_clip_score_is_two_and_a_half_cosines_and_never_negative():
    np.testing.assert_allclose(clip_score(np.array([-0.5, 0, 0.2634, 1])), [0, 0, 0.6585, 2.5])


def test_character_similarity_is_the_mean_over_pairs_that_share_somebody():
    embeddings = np.array([[1.0, 0], [2, 0], [0, 1], [3, 4]])
    matrix = similarity_matrix(embeddings)
    np.testing.assert_allclose(matrix[3], [0.6, 0.6, 0.8, 1])
    together = pairs_of_a_character([["mia"]] * 4)
    assert len(together) == 6
    assert mean_over_pairs(matrix, together) == pytest.approx((1 + 0 + 0.6 + 0 + 0.6 + 0.8) / 6)
    apart = pairs_of_a_character([["mia"], ["bo"], [], ["bo", "mia"]])
    assert apart == [(0, 3), (1, 3)]
    assert mean_over_pairs(matrix, apart) == pytest.approx(0.6)


def test_pictures_without_a_pair_have_no_similarity():
    assert mean_over_pairs(np.eye(2), pairs_of_a_character([["mia"], ["bo"]])) is None
    assert pairs_of_a_character([[], []]) == []


class Looked:
    """A CLIP for torchmetrics whose features are looked up: pictures and texts are told by their first number."""

    def __init__(self, pictures: np.ndarray, texts: np.ndarray) -> None:
        self.pictures, self.texts = torch.from_numpy(pictures), torch.from_numpy(texts)
        self.config = object()

    def to(self, _device: torch.device) -> "Looked":
        return self

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.pictures[pixels]

    def get_text_features(self, ids: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
        return self.texts[ids]


def test_clip_score_agrees_with_torchmetrics():
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    rng = np.random.default_rng(0)
    pictures, texts = rng.normal(size=(2, 16, 12))

    def processor(images=None, text=None, **_: object) -> dict[str, torch.Tensor]:
        ids = torch.tensor([int(x) for x in text] if text else [int(x[0, 0, 0]) for x in images])
        return {"pixel_values": ids, "input_ids": ids, "attention_mask": ids}

    images = [torch.full((3, 1, 1), i, dtype=torch.uint8) for i in range(16)]
    score, _ = _clip_score_update(images, [str(i) for i in range(16)], Looked(pictures, texts), processor)  # type: ignore[arg-type]
    ours = clip_score(cosines(pictures, texts))
    np.testing.assert_allclose(ours, 2.5 * np.maximum(score.numpy() / 100, 0), atol=1e-12)
    assert (score < 0).any()

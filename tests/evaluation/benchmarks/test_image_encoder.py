"""The benchmark of image encoders: what a probe reads, what captions find, and result.json."""

import json
import math

import pytest
import torch

from storydiffusion.evaluation.benchmarks.image_encoder import (
    AttributeReader,
    collect_positions,
    draw_images,
    measure_block,
    measure_retrieval,
    pool_hits,
)
from storydiffusion.evaluation.networks import ImageTextEncoder
from storydiffusion.models.image_encoders import ImageEncoder
from storydiffusion.storyworld.edition import EDITIONS
from tests.conftest import run_verb, shipped_edition


class Pixels(ImageEncoder):
    """An encoder whose tokens are the pixels of an image shrunk to 8 × 8."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), 8, {"hidden": 3, "pooled": 192}, (0.5,) * 3, (0.5,) * 3)

    def hidden(self, pixels):
        return pixels.flatten(2).mT

    def pooled(self, pixels):
        return pixels.flatten(1)


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_place_is_read_from_pixels_and_all_attributes_are_measured(edition):
    reader = AttributeReader(EDITIONS[edition], Pixels(), 128)
    found = measure_block(0, reader, None)
    assert found["probe_place"] > 0.9
    assert {f"probe_{name.removesuffix('_1').removesuffix('_2')}" for name in EDITIONS[edition].labels} <= found.keys()
    assert all(0 <= value <= 1 for name, value in found.items() if value is not None and name != "probe_position_error")
    assert 0 < found["probe_position_error"] < 40
    assert "retrieval" not in found
    assert found == measure_block(0, reader, None)


def test_hits_of_both_characters_count_together_without_absent_ones():
    labels = {"kind_1": torch.tensor([0, 1, -1]), "kind_2": torch.tensor([2, -1, -1]), "hair_1": torch.tensor([-1] * 3)}
    read = {"kind_1": torch.tensor([0, 1, 3]), "kind_2": torch.tensor([0, 0, 0]), "hair_1": torch.tensor([0] * 3)}
    assert pool_hits(read, labels) == {"kind": pytest.approx(2 / 3)}


def test_positions_are_those_of_the_characters():
    edition = EDITIONS[2]
    truths = [edition.sample(1, index) for index in range(20)]
    for truth, row in zip(truths, collect_positions(edition, truths).tolist(), strict=True):
        known = [x for x in row if not math.isnan(x)]
        assert known == pytest.approx([figure.x for figure in truth.characters])


def build_encoder(embed_text) -> ImageTextEncoder:
    return ImageTextEncoder(
        label="pixels", source="pixels", images=Pixels(), tokenize=list, encode_text=embed_text, length=len, window=9,
        unknown_words=lambda text: [], scale=1.0,
    )  # fmt: skip


def test_retrieval_is_the_share_of_images_that_find_their_caption():
    edition = EDITIONS[1]
    truths = [edition.sample(1, index) for index in range(6)]
    images, captions = draw_images(edition, truths), [edition.full_caption(truth) for truth in truths]
    embedded = dict(zip(captions, Pixels().features(images, "pooled")[:, 0], strict=True))
    encoder = build_encoder(lambda texts: torch.stack([embedded[text] for text in texts]))
    assert measure_retrieval(encoder, images, captions) == 1
    swapped = [captions[1], captions[0], *captions[2:]]
    assert measure_retrieval(encoder, images, swapped) == pytest.approx(4 / 6)
    same = captions[:1] * 6
    assert measure_retrieval(encoder, images, same) == 1


TINY = ("benchmark=image_encoder", "benchmark.training_images=64", "benchmark.blocks=2", "csa=off")


def test_the_command_measures_the_shipped_encoder_and_resumes(tmp_path, capsys):
    outcome = run_verb("infer", [*TINY, f"run_dir={tmp_path}"], capsys)
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["items"] == ["images 0 to 63", "images 64 to 127"]
    assert result["settings"]["benchmark.edition"] == shipped_edition().number
    assert all(0 <= value <= 1 for value in result["metrics"]["retrieval"]["values"])
    assert result["metrics"]["probe_place"]["network"] == "package://miniature/image_encoder"
    again = run_verb("infer", [*TINY, f"run_dir={tmp_path}"], capsys)
    assert "already measured" in again.out


@pytest.mark.parametrize(
    ("override", "needs"), [("benchmark.edition=3", "edition=3"), ("benchmark.training_images=1", "training_images=1")]
)
def test_bad_settings_are_refused_by_their_values(tmp_path, capsys, override, needs):
    outcome = run_verb("infer", [*TINY, override, f"run_dir={tmp_path}"], capsys)
    assert outcome.code == 1
    assert needs in outcome.err

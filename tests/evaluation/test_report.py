"""The report of an evaluation: means, n, networks, and no way for a static clip to win unnoticed."""

import numpy as np
import pytest

from storydiffusion.evaluation.measurements import Measurements
from storydiffusion.evaluation.metrics.registry import METRICS
from storydiffusion.evaluation.report import write_motion_remarks, write_table
from storydiffusion.evaluation.result import load_result, save_result

NETWORKS = {"encoder": "E", "distance": "N", "optical_flow": "flow", "i3d": "I"}


def measure() -> Measurements:
    found = Measurements(NETWORKS)
    for name, cosine in (("a 001", 0.6), ("a 002", 0.8)):
        angle = np.array([[cosine, (1 - cosine**2) ** 0.5]])
        found.add("image", [name], {"image_embeddings": angle, "text_embeddings": np.array([[1.0, 0.0]])})
    found.add("story", ["a"], {"image_embeddings": np.array([[1, 0], [1, 3**0.5]]), "pairs": [(0, 1)]})
    for name, step in (("still", 0.0), ("moving", 0.2)):
        frames = np.array([0.0, step])
        found.add("clip", [name], {"flow": step / 10, "distance": lambda a, b: abs(a - b), "features": frames})
    features = np.array([[0.0, 0.0], [1.0, 1.0]])
    found.add("set", ["all clips"], {"video_features": features, "reference_video_features": features + 1})
    return found


def test_the_table_says_what_a_static_clip_has():
    rows = write_table(measure()).splitlines()[2:]
    assert rows == [
        "| text-image similarity | E | 0.7000 ± 0.1000 | cosine | 2 images | higher | – |",
        "| CLIPScore, 2.5 × cosine | E | 1.7500 ± 0.2500 | score | 2 images | higher | – |",
        "| character similarity | E | 0.5000 | cosine | 1 story | higher | – |",
        "| motion | flow | 0.0100 ± 0.0100 | diagonals per frame | 2 clips | close to the reference | 0 |",
        "| LPIPS-first | N | 0.1000 ± 0.1000 | distance | 2 clips | close to the reference | 0 |",
        "| LPIPS-frames | N | 0.1000 ± 0.1000 | distance | 2 clips | close to the reference | 0 |",
        "| FVD | I | 2.0000 | squared distance | the set | lower | – |",
    ]


def test_every_metric_over_time_that_a_static_clip_wins_says_so_and_follows_motion():
    names = list(METRICS)
    for name, metric in METRICS.items():
        if name.startswith(("lpips", "clipsim")):
            assert metric.static == (0 if name.startswith("lpips") else 1)
            assert metric.direction == "reference"
            assert names.index(name) > names.index("motion")


def test_clips_that_are_nearly_static_are_named():
    remarks = " ".join(write_motion_remarks(measure()))
    assert "declares a winner" in remarks
    assert "1 of 2 clips are nearly static" in remarks
    assert "merit: still." in remarks
    moving = Measurements(NETWORKS)
    moving.add("clip", ["moving"], {"flow": 0.02})
    assert "nearly" not in " ".join(write_motion_remarks(moving))
    assert write_motion_remarks(Measurements(NETWORKS)) == []


def test_measurements_become_a_result(tmp_path):
    save_result(measure().to_result({"x": 1}, ["small"]), tmp_path)
    result = load_result(tmp_path / "result.json")
    assert result.values("motion") == {"still": 0, "moving": pytest.approx(0.02)}
    assert result.metrics["motion"].network == "flow"
    assert result.metrics["clip_score"].network == "E"
    assert result.items == ["a 001", "a 002", "a", "still", "moving", "all clips"]
    assert result.metrics["character_similarity"].values == [None, None, pytest.approx(0.5), None, None, None]
    assert (result.settings, result.remarks) == ({"x": 1}, ["small"])
    assert measure().get_values("text_image_similarity") == {"a 001": pytest.approx(0.6), "a 002": pytest.approx(0.8)}

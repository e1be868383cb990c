"""A training on streamed shards: it trains, resumes, and says that its order is not exact."""

import json
import logging
from pathlib import Path

import pytest

from storydiffusion.config import TransitionTrainConfig
from storydiffusion.errors import UserError
from storydiffusion.training.build_training import build_training
from tests.helpers.shard_server import BUSY, serve_shards
from tests.helpers.video_model import composed, overrides
from tests.helpers.videos import video, write_shard


@pytest.fixture
def server(tmp_path):
    blob = video(tmp_path / "a.mp4", 12, height=64, width=64)
    for number in range(2):
        write_shard(tmp_path / "shards" / f"{number}.tar", [f"s{number}k{sample}" for sample in range(3)], blob)
    with serve_shards(tmp_path / "shards") as started:
        yield started


def configure(model: Path, folder: Path, *changes: str) -> TransitionTrainConfig:
    own = [each for each in overrides(model, folder / "cache") if not each.startswith("data.storyworld")]
    stream = ("data=webvid10m", "data.reader=stream", "data.backend=pyav", "data.workers=0", "data.stride=1")
    return composed(*stream, *own, f"run_dir={folder}/run", *changes)


def test_streamed_training_resumes_and_records_its_order(tiny_video_model, server, tmp_path, caplog):
    server.faults = {"0.tar": [BUSY]}
    shards = f"data.shards='{server.url}/{{0..1}}.tar'"
    with caplog.at_level(logging.WARNING):
        for steps in (2, 4):
            config = configure(
                tiny_video_model, tmp_path, shards, f"trainer.max_steps={steps}", "recipe.sample_every=2"
            )
            run = build_training(config)
            run.fit()
            assert run.trainer.global_step == steps
    assert "not exact" in caplog.text
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    run.export(tmp_path / "export")
    record = json.loads((tmp_path / "export" / "training.json").read_text())
    assert record["predictor"]["order"] == "not exact (data.reader=stream)"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.crops=2", "data.crops=2 needs indexed shards"),
        ("data.verify=true", "data.verify=True needs indexed shards"),
        ("data.stream.retries=-1", "data.stream.retries"),
        ("data.stream.timeout_seconds=0", "data.stream.timeout_seconds"),
        ("data.reader=other", "data.reader"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny_video_model, tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        configure(tiny_video_model, tmp_path, "data.shards=https://host/a.tar", change)


def test_drawn_shards_are_not_streamed():
    with pytest.raises(UserError, match="choose data=webvid10m"):
        composed("data.reader=stream")

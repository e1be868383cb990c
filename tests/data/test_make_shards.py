"""`storydiffusion make-shards`, called as from a shell, writes shards that the loader reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from storydiffusion.data.clip_sampling import ClipOptions
from storydiffusion.data.loader import ClipLoader, LoaderOptions
from storydiffusion.data.shard_index import ShardIndex
from storydiffusion.data.shards import find_shards
from tests.conftest import Outcome, run_verb
from tests.helpers.videos import video


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., Outcome]:
    """Calls `storydiffusion make-shards OVERRIDES` in this process, in an empty working directory."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: run_verb("make-shards", ["workers=1", *overrides], capsys)


def read_record(folder: Path, shard: int) -> dict:
    """Return the JSON record of a shard's first sample."""
    index = ShardIndex(find_shards(str(folder)))
    return json.loads(index.read(shard, index.rows(shard)[0]).members["json"])


def test_storyworld(make, tmp_path):
    outcome = make("out=shards", "clips=3", "clips_per_shard=2", "frames=4", "size=64", "fps=8", "edition=1")
    assert outcome.code == 0, outcome
    assert "made 2 shards of 3 clips: shards" in outcome.out
    options = LoaderOptions(str(tmp_path / "shards"), 3, ClipOptions(4, 1, 64, 64, caption_dropout=0.0))
    (batch,) = ClipLoader(options)
    assert batch.frames.shape == (3, 4, 3, 64, 64)
    assert all(batch.captions)
    record = read_record(tmp_path / "shards", 1)
    assert (record["id"], len(record["truth"]), record["stream"]["frames"]) == ("storyworld-0-2", 4, 4)
    assert record["clip"]["motion"]


def test_video_shows_the_clip_of_its_record(make, tmp_path):
    import numpy as np

    from storydiffusion.storyworld.clips import ClipTruth, render_clip

    make("out=shards", "clips=1", "frames=4", "size=128", "seed=5", "edition=1")
    options = LoaderOptions(str(tmp_path / "shards"), 1, ClipOptions(4, 1, 128, 128))
    (batch,) = ClipLoader(options)
    record = read_record(tmp_path / "shards", 0)
    truth = render_clip(ClipTruth.from_dict(record["clip"]), 4, 128).transpose(0, 3, 1, 2)
    assert np.abs(batch.frames[0].numpy().astype(float) - truth).mean() < 6


def test_webvid(make, tmp_path):
    (tmp_path / "videos").mkdir()
    video(tmp_path / "videos" / "1.mp4", 4)
    (tmp_path / "table.csv").write_text("videoid,contentUrl,duration,page_dir,name\n1,u,d,p,A cat\n2,u,d,p,A dog\n")
    outcome = make("source=webvid", "csv=table.csv", "videos=videos", "out=shards")
    assert outcome.code == 0, outcome
    assert "made 1 shards of 1 clips, 1 rejected, see shards/rejects.jsonl: shards" in outcome.out
    assert json.loads((tmp_path / "shards" / "rejects.jsonl").read_text())["id"] == "2"


def test_a_table_of_ones_own_with_a_bad_row(make, tmp_path):
    (tmp_path / "videos").mkdir()
    video(tmp_path / "videos" / "1.mp4", 4)
    (tmp_path / "table.csv").write_text(f"clip,text,name\n{'7' * 300},A dog,long\n1,A cat,first\n1,A, cat,second\n")
    columns = ("video=clip", "caption=text", "id=name")
    outcome = make("source=csv", "csv=table.csv", "videos=videos", "out=shards", *columns)
    assert outcome.code == 0, outcome
    assert "made 1 shards of 1 clips, 2 rejected" in outcome.out
    assert read_record(tmp_path / "shards", 0)["id"] == "first"
    rejects = [json.loads(line) for line in (tmp_path / "shards" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == ["long", " cat"]
    assert "name too long" in rejects[0]["reason"]
    assert "line 4: it has 4 cells" in rejects[1]["reason"]


@pytest.mark.parametrize(
    ("overrides", "needs"),
    [
        (["out=shards", "clips=0"], ["clips=0"]),
        (["out=shards", "size=33"], ["size=33", "34"]),
        (["out=shards", "frames=1"], ["frames=1"]),
        (["out=shards", "clip=5"], ["'clip'", "'clips'"]),
        (["clips=5"], ["out"]),
        (["out=shards", "source=kinetics"], ["'kinetics'", "openvid, storyworld, webvid"]),
        (["out=shards", "backend=opencv"], ["opencv", "decord, pyav, torchcodec"]),
        (["out=shards", "source=webvid"], ["csv"]),
        (["out=shards", "source=webvid", "csv=nowhere.csv", "videos=."], ["csv=nowhere.csv"]),
        (["out=shards", "source=webvid", "csv=table.csv", "videos=."], ["table.csv", "'name'", "videoid, page_dir"]),
        (["out=shards", "source=openvid", "csv=table.csv", "videos=nowhere"], ["videos=nowhere"]),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(make, tmp_path, overrides, needs):
    (tmp_path / "table.csv").write_text("videoid,page_dir\n")
    outcome = make(*overrides)
    assert outcome.code == 1
    assert len(outcome.sentences) == 1, outcome.err
    assert outcome.sentences[0].startswith("make_shards.py: ")
    for need in needs:
        assert need in outcome.sentences[0]
    assert not (tmp_path / "shards").exists()

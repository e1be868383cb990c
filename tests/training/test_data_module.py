from concurrent.futures import ThreadPoolExecutor

import pytest

from storydiffusion.config import StoryWorldClips
from storydiffusion.data.clip_sampling import ClipOptions
from storydiffusion.data.loader import LoaderOptions
from storydiffusion.data.shards import read_manifest
from storydiffusion.errors import UserError
from storydiffusion.training import data_module as clip_data
from storydiffusion.training.data_module import ClipData

STORYWORLD = StoryWorldClips(clips=6, seed=1, frames=3, size=64, fps=8)


def data_in(folder) -> ClipData:
    return ClipData(LoaderOptions(str(folder), 2, ClipOptions(frames=3, height=64, width=64)), STORYWORLD)


def test_of_trainings_that_begin_together_one_draws(tmp_path, monkeypatch):
    drawn, write = [], clip_data.write_shards
    monkeypatch.setattr(clip_data, "write_shards", lambda *arguments: drawn.append(write(*arguments)))
    monkeypatch.setattr(clip_data.os, "cpu_count", lambda: 1)
    with ThreadPoolExecutor(3) as pool:
        for outcome in [pool.submit(data_in(tmp_path / "cache" / "clips").prepare_data) for _ in range(3)]:
            outcome.result()
    assert len(drawn) == 1
    found = read_manifest(tmp_path / "cache" / "clips")
    assert found is not None
    assert (found.complete, found.samples) == (True, 6)


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot lock .*cache/clips .*choose another cache"):
        data_in(tmp_path / "cache" / "clips").prepare_data()

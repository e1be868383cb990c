from concurrent.futures import ThreadPoolExecutor

import pytest

from storydiffusion.data.clip_sampling import ClipOptions
from storydiffusion.data.loader import LoaderOptions
from storydiffusion.data.shards import read_manifest
from storydiffusion.errors import UserError
from storydiffusion.storyworld.clip_source import StoryWorldSource
from storydiffusion.training import data_module
from storydiffusion.training.data_module import ClipData

SOURCE = StoryWorldSource(clips=6, seed=1, frames=3, size=64, fps=8, edition=1)


def data_in(folder) -> ClipData:
    return ClipData(LoaderOptions(str(folder), 2, ClipOptions(frames=3, height=64, width=64)), SOURCE)


def test_one_of_several_concurrent_trainings_writes_the_shards(tmp_path, monkeypatch):
    written, write = [], data_module.write_shards
    monkeypatch.setattr(data_module, "write_shards", lambda *arguments: written.append(write(*arguments)))
    monkeypatch.setattr(data_module.os, "cpu_count", lambda: 1)
    with ThreadPoolExecutor(3) as pool:
        for outcome in [pool.submit(data_in(tmp_path / "cache" / "clips").prepare_data) for _ in range(3)]:
            outcome.result()
    assert len(written) == 1
    found = read_manifest(tmp_path / "cache" / "clips")
    assert found is not None
    assert (found.complete, found.samples) == (True, 6)


def test_error_names_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot lock .*cache/clips .*choose another cache"):
        data_in(tmp_path / "cache" / "clips").prepare_data()

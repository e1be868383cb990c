"""Training on cached features equals training on the videos' fixed crops; damage is named, and resumed work is kept."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from tqdm import tqdm

from storydiffusion.data.clips import Clips
from storydiffusion.data.feature_cache import ShardCrops
from storydiffusion.data.loader import ClipBatch, ClipLoader, FeatureBatch
from storydiffusion.data.shard_index import ShardIndex
from storydiffusion.data.shards import find_shards
from storydiffusion.errors import UserError
from storydiffusion.training.build_training import build_training
from storydiffusion.training.callbacks import fill_feature_cache
from storydiffusion.training.callbacks.fill_feature_cache import encode_clips
from storydiffusion.training.data_module import build_clip_data, build_feature_cache
from tests.helpers.processes import run_processes
from tests.helpers.video_model import composed, overrides

STEPS = 6


@pytest.fixture
def compose(tiny_video_model, cache, tmp_path):
    """Return a factory of configurations of runs in folders of their own."""

    def make(run: str, *changes: str):
        few = ("data.backend=pyav", "recipe.sample_every=0", f"trainer.max_steps={STEPS}", "data.crops=2")
        crops = ("data.flip=0.5", "data.brightness=0.3", "recipe.semantic_weight=0.5", "recipe.joint_dropout=0.3")
        return composed(
            *overrides(tiny_video_model, cache), *few, *crops, "trainer.checkpoint_minutes=60",
            f"run_dir={tmp_path}/{run}", *changes,
        )  # fmt: skip

    return make


def fit(config) -> list[float]:
    run = build_training(config)
    run.fit()
    with (Path(config.run_dir) / "metrics.csv").open(newline="") as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream)]


def test_cached_training_equals_that_on_videos(compose, tmp_path):
    plain = fit(compose("plain"))
    cached = fit(compose("cached", f"data.cache={tmp_path}/features"))
    assert len(plain) == STEPS
    assert cached == pytest.approx(plain, rel=1e-4)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.safetensors")}
    assert files
    assert fit(compose("again", f"data.cache={tmp_path}/features")) == cached
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.safetensors")} == files


def test_batches_have_the_order_and_the_crops_of_the_videos(compose, tmp_path):
    config = compose("run", f"data.cache={tmp_path}/features", "trainer.max_steps=1", "recipe.semantic_weight=0")
    run = build_training(config)
    run.fit()
    data = build_clip_data(config)
    videos, features = ClipLoader(data.options), ClipLoader(data.options, cache=data.cache)
    seen = set()
    for _ in range(2):
        for one, other in zip(videos, features, strict=True):
            assert isinstance(one, ClipBatch)
            assert isinstance(other, FeatureBatch)
            assert (one.keys, one.captions) == (other.keys, other.captions)
            encoded = run.module.encode(one)
            torch.testing.assert_close(other.latents, encoded.latents, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(other.text, encoded.text, rtol=1e-4, atol=1e-5)
            image = run.module.image_features(one.frames)
            torch.testing.assert_close(other.image, image, rtol=1e-4, atol=1e-4)
            seen |= set(zip(one.keys, [frames.sum().item() for frames in one.frames], strict=True))
    assert len({key for key, _ in seen}) < len(seen) <= 2 * 8  # two crops of each of the eight clips


def test_other_crops_or_frames_have_another_folder(compose, tmp_path):
    cache = f"data.cache={tmp_path}/features"
    changes = ([], ["data.crops=3"], ["recipe.seed=2"], ["data.flip=0"], ["data.frames=3"], ["model.dtype=float32"])
    folders = [build_feature_cache(compose("run", cache, *each)).folder for each in changes]  # type: ignore[union-attr]
    assert len(set(folders[:-1])) == len(folders) - 1
    reads_ends = build_feature_cache(compose("run", cache, "recipe.semantic_weight=0", "recipe.teacher_forcing=0"))
    assert reads_ends is not None
    assert reads_ends.folder not in folders
    same = build_feature_cache(compose("run", cache, "recipe.learning_rate=1", "data.workers=1", "data.window=2"))
    assert same is not None
    assert same.folder == folders[0]


def change_a_weight(file: Path) -> None:
    """Flip one bit of the last weight in a safetensors file, which stays a number."""
    data = bytearray(file.read_bytes())
    before = load(bytes(data))
    data[-2] ^= 1  # of the fraction, in little-endian order
    after = load(bytes(data))
    assert sum((after[name] != tensor).sum().item() for name, tensor in before.items()) == 1
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in after.values())
    file.write_bytes(data)


def test_one_other_weight_of_a_network_that_encodes_has_another_folder(compose, tiny_video_model, tmp_path):
    model = shutil.copytree(tiny_video_model, tmp_path / "model")
    paths = (f"model.path={model}", f"model.video.image_encoder={model}/image_encoder")

    def find_folder() -> Path:
        cache = build_feature_cache(compose("run", f"data.cache={tmp_path}/features", *paths))
        assert cache is not None
        return cache.folder

    folders = [find_folder()]
    original = build_feature_cache(compose("run", f"data.cache={tmp_path}/features"))
    assert original is not None
    assert folders == [original.folder]  # equal weights elsewhere are the same weights
    for part in ("vae", "image_encoder", "text_encoder"):
        change_a_weight(next((model / part).glob("*.safetensors")))
        folders.append(find_folder())
    assert len(set(folders)) == 4
    change_a_weight(next((model / "unet").glob("*.safetensors")))
    assert find_folder() == folders[-1]  # the U-Net encodes nothing


def test_damage_is_named_and_unfinished_files_are_computed_again(compose, tmp_path):
    config = compose("run", f"data.cache={tmp_path}/features", "trainer.max_steps=1")
    fit(config)
    file = next((tmp_path / "features").rglob("*.safetensors"))
    data = bytearray(file.read_bytes())
    whole = bytes(data)
    for place in range(len(data) // 4, len(data), 997):
        data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{file.name} cannot be read .*delete it"):
        fit(compose("damaged", f"data.cache={tmp_path}/features"))
    with pytest.raises(UserError, match="SHA-256"):
        fit(compose("verified", f"data.cache={tmp_path}/features", "data.verify=true"))
    file.write_bytes(whole[:-100])  # no killed process leaves this, and the manifest shows it
    fit(compose("cut", f"data.cache={tmp_path}/features"))
    assert file.read_bytes() == whole


def test_unusable_clips_are_replaced_as_among_videos(compose, tmp_path, cache):
    config = compose("run", f"data.cache={tmp_path}/features", "data.rejected_share=0.5", "trainer.max_steps=1")
    run = build_training(config)
    run.fit()
    data = build_clip_data(config)
    record = ShardIndex(find_shards(data.options.shards)).records[0]
    crops = ShardCrops(Clips(data.options), 0)
    clips = [crops[row] for row in range(len(crops))]
    rows = [row for part in range(len(clips)) for row in encode_clips(run.module, clips[part : part + 1])]  # type: ignore[arg-type]
    tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    captions = [clip.captions[0] for clip in clips[::2]]  # type: ignore[union-attr]
    assert data.cache is not None
    tensors["empty"] = run.module.text_encoder([""])[0]
    data.cache.write(record, tensors, captions, {0: "its decoder fails", 1: "its decoder fails"})
    loader = ClipLoader(data.options, cache=build_clip_data(config).cache)
    keys = [key for batch in loader for key in batch.keys]
    assert clips[0].key not in keys  # type: ignore[union-attr]
    assert len(keys) == 8
    assert loader.rejected == 1


def test_progress_moves_with_every_batch(compose, tmp_path, monkeypatch):
    shown = []

    class Bar(tqdm):
        def update(self, n=1):
            shown.append((n, len(list((tmp_path / "features").rglob("*.safetensors")))))
            return super().update(n)

    monkeypatch.setattr(fill_feature_cache, "tqdm", Bar)
    build_training(compose("run", f"data.cache={tmp_path}/features", "trainer.max_steps=1")).fit()
    assert sum(crops for crops, _ in shown) == 2 * 8
    assert len(shown) > 2
    assert {files for _, files in shown} == {0}  # not only once the shard is written


def rank(number: int, config) -> None:
    build_training(config).fit()


def test_two_processes_share_the_work(compose, tmp_path):
    two = compose("two", f"data.cache={tmp_path}/features", "trainer.strategy=ddp", "trainer.devices=2")
    assert run_processes(rank, 2, two) == [0, 0]
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.crops=null"], "set data.crops"),
        (
            ["data.captions=storyworld_frames", "recipe.diffusion_weight=0", "recipe.text_weight=1"],
            "data.captions=clip",
        ),
        (["data.crops=0"], "data.crops"),
    ],
)
def test_settings_that_no_cache_fits_are_refused(compose, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        compose("run", f"data.cache={tmp_path}/features", *changes)

"""What is fetched of a model on the hub: one variant of the weights, and no more than a story needs."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_utils
from huggingface_hub.utils import filter_repo_objects

from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.text_to_image import load_story_model
from tests.helpers.sdxl_model import build_tiny_sdxl
from tests.loaders.test_added_files import add_half
from tests.loaders.test_text_to_image import config

HUB_ID = "owner/name"


@pytest.fixture(scope="module")
def sdxl(tiny_model, tmp_path_factory) -> Path:
    return build_tiny_sdxl(tiny_model, tmp_path_factory.mktemp("models") / "sdxl")


class Hub:
    """Serves a folder as a repository to diffusers, whose own code chooses the files; `fetched` are their names."""

    def __init__(self, repository: Path, cache: Path, patch: pytest.MonkeyPatch) -> None:
        self.repository, self.cache = repository, cache
        for name in ("model_info", "hf_hub_download", "snapshot_download"):
            patch.setattr(pipeline_utils, name, getattr(self, name))
        patch.setattr(pipeline_utils, "_resolve_revision", lambda *_, revision, **__: revision)

    @property
    def fetched(self) -> set[str]:
        return {file.relative_to(self.cache).as_posix() for file in self.cache.rglob("*") if file.is_file()}

    @property
    def weights(self) -> set[str]:
        return {Path(name).name for name in self.fetched if name.endswith(".safetensors")}

    def model_info(self, name: str, **_) -> SimpleNamespace:
        assert name == HUB_ID
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self._list()])

    def hf_hub_download(self, name: str, file: str, **_) -> str:
        return str(self._fetch(file))

    def snapshot_download(self, name: str, *, allow_patterns, ignore_patterns, **_) -> str:
        for file in filter_repo_objects(self._list(), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            self._fetch(file)
        return str(self.cache)

    def _list(self) -> list[str]:
        return [file.relative_to(self.repository).as_posix() for file in self.repository.rglob("*") if file.is_file()]

    def _fetch(self, name: str) -> Path:
        place = self.cache / name
        place.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(self.repository / name, place))


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Return a function that serves a model folder with `full`, `both` or `fp16` weights, and a safety checker."""

    def make(folder: Path, kind: str) -> Hub:
        repository = shutil.copytree(folder, tmp_path / "repository")
        if kind != "full":
            add_half(repository, keep_full=kind == "both")
        (repository / "safety_checker").mkdir()
        (repository / "safety_checker" / "model.safetensors").write_bytes(b"not even looked at")
        return Hub(repository, tmp_path / "cache", monkeypatch)

    return make


@pytest.mark.parametrize(
    ("kind", "variant", "dtype", "is_half"),
    [
        ("both", "auto", "float16", True), ("both", "auto", "float32", False), ("both", "auto", "bfloat16", False),
        ("both", "fp16", "float32", True), ("both", None, "float16", False), ("full", "auto", "float16", False),
        ("fp16", "auto", "float16", True),
    ],
)  # fmt: skip
def test_one_variant_of_the_weights_is_fetched(tiny_model, serve, kind, variant, dtype, is_half):
    hub = serve(tiny_model, kind)
    model = resolve_model(config(HUB_ID, variant=variant, dtype=dtype))
    end = ".fp16.safetensors" if is_half else ".safetensors"
    assert hub.weights == {f"diffusion_pytorch_model{end}", f"model{end}"}
    assert {f"{part}/config.json" for part in ("unet", "vae", "text_encoder")} < hub.fetched
    assert not any(name.startswith("safety_checker") for name in hub.fetched)
    assert set(model.weights) == {name for name in hub.fetched if name.endswith(".safetensors")}
    assert load_story_model(model).pipe.unet.dtype == model.dtype


def test_a_part_without_the_variant_is_fetched_in_full(sdxl, serve):
    hub = serve(sdxl, "fp16")  # the second text encoder has no variant
    load_story_model(resolve_model(config(HUB_ID, "sdxl", dtype="float16")))
    assert {name for name in hub.fetched if name.startswith("text_encoder_2")} == {
        "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
    }  # fmt: skip
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.fetched


@pytest.mark.parametrize(("kind", "variant"), [("full", "fp16"), ("fp16", None)])
def test_a_variant_that_a_repository_lacks_is_named(tiny_model, serve, kind, variant):
    hub = serve(tiny_model, kind)
    with pytest.raises(UserError, match=rf"model\.variant={variant or 'null'}\).*choose another model\.var") as error:
        resolve_model(config(HUB_ID, variant=variant, dtype="float16"))
    assert str(error.value).startswith("cannot fetch model.path=owner/name (revision main, ")
    assert "\n" not in str(error.value)
    assert not hub.weights


@pytest.mark.parametrize(
    ("variant", "dtype", "wanted"),
    [("auto", "float16", "fp16"), ("auto", "float32", None), ("fp16", "float32", "fp16"), (None, "float16", None)],
)
def test_diffusers_is_asked_for_the_variant_and_for_no_pickles(
    tiny_model, tmp_path, monkeypatch, variant, dtype, wanted
):
    folder, asked = shutil.copytree(tiny_model, tmp_path / "model"), []
    add_half(folder, keep_full=True)
    monkeypatch.setattr(DiffusionPipeline, "download", lambda name, **given: asked.append((name, given)) or folder)
    resolve_model(config(HUB_ID, revision="abc", variant=variant, dtype=dtype))
    unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    assert asked == [(HUB_ID, {"revision": "abc", "variant": wanted, "use_safetensors": True, **unused})]


@pytest.mark.parametrize("error", [OSError("no space left"), httpx.ConnectError("no route")])
def test_a_failing_connection_does_not_fetch_other_weights(monkeypatch, error):
    asked = []

    def fail(name: str, *, variant: str | None, **_) -> None:
        asked.append(variant)
        raise error

    monkeypatch.setattr(DiffusionPipeline, "download", fail)
    with pytest.raises(UserError, match=f"model.variant=fp16 or null.*connect.*{error}"):
        resolve_model(config(HUB_ID, dtype="float16"))
    assert asked == ["fp16"]

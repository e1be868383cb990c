"""The miniature's trainings at tiny size: their exports, and resumed runs are bit-equal."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from transformers import CLIPModel

from storydiffusion.config import TrainConfig, load
from storydiffusion.config.miniature import AttributeClassifierRecipe
from storydiffusion.errors import UserError
from storydiffusion.models.image_encoders import load_clip, load_image_encoder
from storydiffusion.storyworld.attribute_classifier import AttributeClassifier
from storydiffusion.storyworld.captions import words
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.scene import SCENE_LABELS
from storydiffusion.storyworld.spoilt import FAULTS
from storydiffusion.storyworld.truth import ATTRIBUTES
from storydiffusion.training.build_training import build_training
from storydiffusion.training.miniature.attribute_classifier import attribute_loss
from storydiffusion.training.miniature.stream import Stream
from storydiffusion.training.optim.learning_rate import compute_rate
from storydiffusion.training.training_run import TrainingRun
from tests.helpers.training_state import PowerCut, Steps, add, state

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
SHIPPED = ROOT / "src" / "storydiffusion" / "miniature"
TINY = {
    "autoencoder": ("block_out_channels=[8,8,8,8]", "latent_channels=4", "crop=32"),
    "clip": ("width=32", "text_layers=1", "image_layers=1", "patch_size=32", "projection=8"),
    "attribute_classifier": ("channels=[4,4,4,4,4]",),
    "text2image": ("block_out_channels=[16,16]", "head_width=8", "pictures=6"),
}

CONVOLUTIONAL = (
    "width=32", "text_layers=1", "image_width=64", "projection=8", "batch_size=16", "family_share=0.5",
)  # fmt: skip


def training(part: str, folder: Path, steps: int, run: str = "run", edition: int = 1) -> TrainingRun:
    """Return a tiny training of `part`; all parts are exported to one folder."""
    overrides = (
        f"run_dir={folder}/{run}/{part}", f"cache={folder}/cache",
        f"export={folder}/model", f"miniature={folder}/model",
        "trainer.checkpoint_minutes=0", "trainer.log_every=1", "trainer=cpu",
        f"recipe.steps={steps}", "recipe.batch_size=4", "recipe.warmup_steps=2", f"recipe.edition={edition}",
    )  # fmt: skip
    further = {"conv_clip": CONVOLUTIONAL, "conv_clip_2": CONVOLUTIONAL, "trained_csa": ("panels=2", "pictures=4")}
    tiny = [f"recipe.{override}" for override in (TINY | further)[part]]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", [f"experiment=storyworld_{part}", *overrides, *tiny])
    torch.manual_seed(0)
    return build_training(load(TrainConfig, composed))


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train all parts for two steps each and export them into one folder."""
    folder = tmp_path_factory.mktemp("training")
    for part in TINY:
        trained = training(part, folder, steps=2)
        trained.fit()
        assert trained.trainer.global_step == 2
        trained.export(folder / "model")
    return folder / "model"


def test_warm_autoencoder_starts_from_the_folder_and_draws_its_edition(miniature):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["experiment=storyworld_autoencoder", f"miniature={miniature}", "recipe.warm_start=true"]
        first, second = (
            build_training(load(TrainConfig, compose("train", [*overrides, f"recipe.edition={n}"]))).module
            for n in (1, 2)
        )
    saved = AutoencoderKL.from_pretrained(miniature / "vae", torch_dtype=torch.float32).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in first.autoencoder.state_dict().items())
    corner = first.generator(0).get_state()
    assert torch.equal(corner, second.generator(0).get_state())
    assert not torch.equal(first.crops(0).images, second.crops(0).images)


def test_decoder_alone_is_trained_where_the_encoder_is_frozen(miniature, tmp_path):
    settings = ["trainer=cpu", f"run_dir={tmp_path}/run", f"miniature={miniature}", "recipe.steps=2", "recipe.crop=32"]
    settings += ["recipe.warm_start=true", "recipe.freeze_encoder=true"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(
            "train",
            [
                "experiment=storyworld_autoencoder",
                "trainer=cpu",
                f"run_dir={tmp_path}/run",
                "recipe.steps=2",
                *settings,
            ],
        )
    trained = build_training(load(TrainConfig, composed))
    trained.fit()
    trained.export(tmp_path / "model")
    before, after = (AutoencoderKL.from_pretrained(folder / "vae") for folder in (miniature, tmp_path / "model"))
    assert after.config.scaling_factor == before.config.scaling_factor
    changed = {
        name.split(".")[0]
        for name, value in after.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"decoder", "post_quant_conv"}


def test_new_encoder_cannot_be_frozen():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", ["experiment=storyworld_autoencoder", "recipe.freeze_encoder=true"])
    with pytest.raises(UserError, match=r"recipe\.freeze_encoder=true .*recipe\.warm_start=true"):
        load(TrainConfig, composed)


@pytest.fixture(scope="module")
def second_edition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train all parts on the second edition."""
    folder = tmp_path_factory.mktemp("second_edition")
    for part in TINY:
        trained = training(part, folder, steps=1, edition=2)
        trained.fit()
        trained.export(folder / "model")
    return folder / "model"


def test_parts_of_the_second_edition_know_its_words_and_attributes(second_edition):
    classifier = AttributeClassifier.load(second_edition / "attribute_classifier")
    assert classifier.edition == 2
    read = classifier.read(torch.zeros(2, 3, 128, 128))
    assert read.keys() == SCENE_LABELS.keys()
    assert all(value in SCENE_LABELS[name] for name, values in read.items() for value in values)
    assert json.loads((second_edition / "storydiffusion.json").read_text()) == {"kind": "miniature", "edition": 2}
    pipe = StableDiffusionPipeline.from_pretrained(second_edition)
    pipe.set_progress_bar_config(disable=True)
    prompt = "a sad fox is waving on the far left and a happy girl is reading on the right, in the park"
    tokens = pipe.tokenizer(prompt).input_ids
    assert len(tokens) == len(words(prompt)) + 2
    assert pipe.tokenizer.unk_token_id not in tokens
    assert pipe.text_encoder.config.max_position_embeddings == pipe.tokenizer.model_max_length == 77
    (image,) = pipe(prompt, num_inference_steps=1).images
    assert image.size == (128, 128)


def test_an_unknown_edition_is_refused():
    with pytest.raises(UserError, match=r"recipe\.edition=3: give the edition of StoryWorld, 1 or 2"):
        training("autoencoder", Path("unused"), steps=1, edition=3)


def test_diffusers_and_transformers_load_the_export(miniature):
    vae, info = AutoencoderKL.from_pretrained(miniature / "vae", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert vae.config["scaling_factor"] > 0
    clip, info = CLIPModel.from_pretrained(miniature / "image_encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert clip.get_image_features(torch.zeros(1, 3, 128, 128)) is not None
    read = AttributeClassifier.load(miniature / "attribute_classifier").read(torch.zeros(2, 3, 128, 128))
    assert all(value in ATTRIBUTES[name] for name, values in read.items() for value in values)


@pytest.mark.parametrize("folder", ["trained here", "shipped"])
def test_stable_diffusion_pipeline_loads_the_folder_and_generates(folder, miniature):
    pipe = StableDiffusionPipeline.from_pretrained(miniature if folder == "trained here" else SHIPPED)
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe("a girl is running in the park", num_inference_steps=2).images
    assert image.size == (128, 128)
    assert pipe.scheduler.config["prediction_type"] == "v_prediction"


def test_weights_are_stored_as_float16(miniature):
    files = sorted(miniature.rglob("*.safetensors"))
    assert len(files) == 5
    for file in files:
        weights = load_file(file)
        assert all(t.dtype == torch.float16 for t in weights.values() if t.is_floating_point()), file


def test_every_part_has_a_training_record(miniature):
    record = json.loads((miniature / "training.json").read_text())
    assert set(record) == set(TINY)
    for part, entry in record.items():
        assert entry["recipe"]["part"] == part
        assert entry["recipe"]["steps"] == 2
        assert entry["wall_seconds"] >= 0
        assert entry["machine"]


@pytest.mark.parametrize("part", ["clip", "conv_clip", "text2image", "trained_csa"])
def test_resumed_training_is_bit_equal(part, miniature):
    folder = miniature.parent
    whole = training(part, folder, steps=4, run="whole")
    whole.fit()
    cut = training(part, folder, steps=4, run="cut")
    add(cut, PowerCut(2))
    with pytest.raises(ConnectionAbortedError):
        cut.fit()
    resumed = training(part, folder, steps=4, run="cut")
    with torch.no_grad():
        for parameter in resumed.module.parameters():
            parameter.add_(1)  # so that only the checkpoint can restore them
    steps = add(resumed, Steps())
    resumed.fit()
    assert steps.seen == [2, 3]
    assert state(resumed).keys() == state(whole).keys()
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name


@pytest.mark.parametrize(("part", "edition"), [("conv_clip", 1), ("conv_clip_2", 2)])
def test_loss_of_the_convolutional_clip_falls(tmp_path, part, edition):
    module = training(part, tmp_path, steps=10, edition=edition).module
    batch = module.training_pairs(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    terms = []
    for _ in range(12):
        found = module.loss(batch)
        weight = module.recipe.attribute_weight
        torch.testing.assert_close(found["loss"], found["contrast"] + weight * found["attributes"])
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        terms.append(found)
    for name in ("contrast", "attributes"):
        assert terms[-1][name] < 0.8 * terms[0][name], name


def test_convolutional_clip_is_exported_without_its_heads_and_starts_text2image(tmp_path, miniature):
    trained = training("conv_clip", tmp_path, steps=1)
    trained.fit()
    trained.export(tmp_path / "model")
    folder = tmp_path / "model" / "image_encoder"
    assert not [name for name in load_file(folder / "model.safetensors") if "heads" in name or "queries" in name]
    assert load_image_encoder(str(folder)).features(torch.zeros(1, 3, 128, 128, dtype=torch.uint8)).shape == (1, 16, 64)
    shutil.copytree(miniature / "vae", tmp_path / "model" / "vae")
    text_encoder = training("text2image", tmp_path, steps=1).module.text_encoder.state_dict()
    for name, weight in load_clip(folder).text_model.state_dict().items():
        assert torch.equal(weight, text_encoder[name]), name


def test_convolutional_clip_of_the_second_edition_has_a_finer_grid_and_measures_its_heads(tmp_path):
    trained = training("conv_clip_2", tmp_path, steps=1, edition=2)
    trained.fit()
    trained.export(tmp_path / "model")
    folder = tmp_path / "model" / "image_encoder"
    names = list(load_file(folder / "model.safetensors"))
    assert not [name for name in names if "heads" in name or "queries" in name or "project_tokens" in name]
    encoder, images = load_image_encoder(str(folder)), torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
    assert encoder.features(images).shape == (2, 64, 64)
    assert encoder.features(images, "pooled").shape == (2, 1, 8)
    figures = json.loads((tmp_path / "model" / "training.json").read_text())["clip"]["figures"]
    assert {f"attribute heads: {name}" for name in SCENE_LABELS} <= figures.keys()
    assert all(0 <= figures[f"attribute heads: {name}"] <= 1 for name in SCENE_LABELS)


@pytest.mark.parametrize("edition", EDITIONS)
def test_batches_of_the_convolutional_clip_have_families_and_independent_images(tmp_path, edition):
    module = training("conv_clip", tmp_path, steps=1, edition=edition).module
    labels = module.pairs(1, 0).labels
    assert labels.keys() == EDITIONS[edition].labels.keys()
    activity = ("kind", "action", "mood", "side", "place", "object", "characters")
    activities = torch.stack([labels[name] for name in labels if name.split("_")[0] in activity], 1)
    assert len(activities[:8].unique(dim=0)) == 1
    assert len(activities[8:].unique(dim=0)) == 8
    clean, degraded = module.pairs(1, 0).images, module.training_pairs(0).images
    assert not torch.equal(clean, degraded)
    assert torch.equal(degraded, module.training_pairs(0).images)


def test_attribute_loss_ignores_absent_attributes():
    logits = {"hair": torch.tensor([[2.0, 0.0], [0.0, 5.0]]), "shirt": torch.zeros(2, 4)}
    labels = {"hair": torch.tensor([0, -1]), "shirt": torch.tensor([1, 2])}
    expected = (math.log(1 + math.exp(-2)) + math.log(4)) / 2
    assert attribute_loss(logits, labels).item() == pytest.approx(expected)
    absent = {"hair": torch.tensor([-1, -1]), "shirt": torch.tensor([1, 2])}
    assert attribute_loss(logits, absent).item() == pytest.approx(math.log(4) / 2)


@pytest.mark.parametrize(
    ("part", "override", "value"),
    [
        ("conv_clip", "image_width=100", "image_width=100"),
        ("conv_clip", "patch_size=16", "patch_size=16: give a multiple of 64 and 32"),
        ("conv_clip_2", "patch_size=32", "patch_size=32: give a multiple of 64 and 16"),
        ("conv_clip", "naming_probability=1.5", "naming_probability=1.5"),
        ("clip", "tower=vgg", "vgg"),
    ],
)
def test_an_impossible_clip_is_refused_by_its_value(part, override, value):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", [f"experiment=storyworld_{part}", f"recipe.{override}"])
    with pytest.raises(UserError, match=value):
        load(TrainConfig, composed)


def squares(steps: int) -> Stream:
    return Stream(lambda step: step**2, steps)


@pytest.mark.parametrize("taken", [0, 3, 5])
def test_resumed_stream_continues(taken):
    stream = squares(5)
    batches = iter(stream)
    before = [next(batches) for _ in range(taken)]
    resumed = squares(5)
    resumed.load_state_dict(stream.state_dict())
    assert before + list(resumed) == [0, 1, 4, 9, 16]
    assert len(stream) == 5


RECIPE = AttributeClassifierRecipe(
    "attribute_classifier",
    100,
    1,
    0.02,
    0.001,
    warmup_steps=5,
    decay=0.5,
    ema_decay=0.9,
    seed=1,
    edition=1,
    channels=(4,),
)


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    rates = [compute_rate(RECIPE, step) for step in (0, 1, 4, 50, 75, 100)]
    assert rates == pytest.approx([0.2, 0.4, 1.0, 1.0, 0.5, 0.0])


def test_the_scene_classifier_is_measured_on_every_attribute_and_on_spoilt_images(second_edition):
    accuracy = json.loads((second_edition / "training.json").read_text())["attribute_classifier"]["figures"]
    assert accuracy.keys() >= SCENE_LABELS.keys() | {f"spoilt: {fault}" for fault in FAULTS}
    assert all(0 <= accuracy[name] <= 1 for name in SCENE_LABELS)

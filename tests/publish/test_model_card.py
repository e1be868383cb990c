"""The model card of a tiny model of random weights, and its sheets, of images of known colors."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.publish.model_card import (
    ModelCardConfig,
    count_parameters,
    create_card,
    encode_png,
    read_training_record,
    sheet,
    write_training_table,
)
from storydiffusion.storyworld.motions import MOTIONS
from tests.conftest import compose_config
from tests.helpers.world_model import build_world_model, build_world_video_model

LARGEST = 1_500_000  # bytes of a sheet


def plain(shade: int) -> Image.Image:
    return Image.new("RGB", (8, 6), (shade,) * 3)


def test_a_sheet_has_every_image_in_its_place_and_a_gap_between_halves():
    rows = [[plain(10 * r + c) for c in range(4)] for r in range(3)]
    for halves, extra in ((False, 0), (True, 16 + 4)):
        page = np.asarray(sheet(rows, halves))
        assert page.shape == (4 + 3 * 10, 4 + 4 * 12 + extra, 3)
        for r in range(3):
            for c in range(4):
                left = 4 + c * 12 + (extra if c >= 2 else 0)
                assert (page[4 + r * 10 : 10 + r * 10, left : left + 8] == 10 * r + c).all()
        assert (page == 255).all(-1).sum() == page[..., 0].size - 12 * 48


def test_drawn_images_make_sheets_of_moderate_size_and_true_colors():
    from storydiffusion.storyworld.images import draw

    rng = np.random.default_rng(0)
    images = draw(10_000, range(8)).images.permute(0, 2, 3, 1).numpy() * 127.5 + 127.5
    noisy = np.clip(images + rng.normal(0, 3, images.shape), 0, 255).astype(np.uint8)  # like an autoencoder's errors
    page = sheet([[Image.fromarray(image) for image in noisy]])
    data = encode_png(page)
    assert len(data) * 12 < LARGEST  # the stories' sheet is 12 such rows
    again = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
    assert np.abs(again - np.asarray(page, float)).mean() < 8


def test_parameters_are_those_of_the_networks(tmp_path):
    from safetensors.numpy import save_file

    for part, shapes in {"unet": [(3, 4), (5,)], "vae": [()]}.items():
        (tmp_path / part).mkdir()
        tensors = {str(i): np.zeros(shape, np.float16) for i, shape in enumerate(shapes)}
        save_file(tensors, tmp_path / part / "model.safetensors")
    assert count_parameters(tmp_path) == {"unet": 17, "vae": 1}


def test_the_training_table_has_a_row_for_each_part():
    entry = {"recipe": {"steps": 1200, "batch_size": 8}, "wall_seconds": 3600, "machine": "M", "figures": {}}
    table = write_training_table(
        {"attribute_classifier": {**entry, "figures": {"kind": 0.995}}, "text2image": entry}
    ).splitlines()
    assert table[2:] == [
        "| attribute_classifier | 1,200 | 8 | 60 min | M | kind 0.995 |",
        "| text2image | 1,200 | 8 | 60 min | M | – |",
    ]


def test_notes_on_a_training_follow_the_table():
    entry = {"recipe": {"steps": 2, "batch_size": 8}, "wall_seconds": 60, "machine": "M", "figures": {}}
    table = write_training_table({"attribute_classifier": {**entry, "notes": ["It was stopped twice."]}, "clip": entry})
    assert table.endswith("| – |\n\nattribute_classifier: It was stopped twice.\n")


def config_of(folder: Path, *video: str) -> ModelCardConfig:
    overrides = [f"model.path={folder}", "model.steps=1", "model.device=cpu"]
    overrides += video or ["model.video.predictor=null"]
    return compose_config("model-card", *overrides)


def test_the_card_of_a_model(tmp_path):
    folder = build_world_model(tmp_path / "model")
    create_card(config_of(folder))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "RESULTS.md" in card
    assert "| attribute_classifier | 1 | 2 | 2 min | a machine | kind 0.995, shirt 0.5 |" in card
    assert {f"{count:,}" for count in count_parameters(folder).values()} <= {c.strip() for c in card.split("|")}
    assert "\n63. " in card
    for name, size in (("samples.png", (1060, 1060)), ("stories.png", (1080, 1588))):
        assert Image.open(folder / name).size == size
        assert (folder / name).stat().st_size < LARGEST
        assert f"({name})" in card
    from diffusers import StableDiffusionPipeline  # as the card says

    assert type(StableDiffusionPipeline.from_pretrained(folder)) is StableDiffusionPipeline


def test_the_card_of_a_model_of_the_second_edition(tmp_path):
    from storydiffusion.evaluation.benchmarks.text_to_image import draw_case
    from storydiffusion.files.checksums import compute_sha256
    from storydiffusion.storyworld.edition import EDITIONS

    folder = build_world_model(tmp_path / "model", 2)
    unet = compute_sha256(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "anatomy.yaml").write_text(f"unet: {unet}\nfaults: {{3: a third arm}}\n")
    create_card(config_of(folder))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for number in range(64):
        assert f"\n{number}. {draw_case(EDITIONS[2], number).prompt.text}\n" in card
    assert "1 shows a visible fault of drawing.\n\n- 3: a third arm\n" in card
    assert "girl, boy, robot, cat, bear, rabbit, fox;" in card
    assert "one or two whole characters" in card
    assert Image.open(folder / "stories.png").size == (1080, 1588)


def test_the_card_of_a_model_with_video(tmp_path):
    folder = build_world_video_model(tmp_path / "model")
    record = json.loads((folder / "training.json").read_text())
    record["predictor"] = {
        **record["attribute_classifier"],
        "recipe": {**record["attribute_classifier"]["recipe"], "semantic_weight": 0.25},
    }
    (folder / "training.json").write_text(json.dumps(record))
    parts = [f"model.video.{part}={folder}/{part}" for part in ("motion_adapter", "image_encoder", "predictor")]
    create_card(config_of(folder, *parts, "model.video.steps=1", "model.video.guidance_scale=2"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "with weight 0.25 (`recipe.semantic_weight`)" in card
    assert f"in 1 steps at guidance 2:\n{', '.join(MOTIONS)}." in card
    sheet = np.asarray(Image.open(folder / "clips.png").convert("RGB"))
    assert sheet.shape == (len(MOTIONS) * (2 * 128 + 4) - 4, 8 * 128, 3)
    assert (folder / "clips.png").stat().st_size < LARGEST


def test_a_model_without_a_record_is_refused_before_generating(tmp_path):
    with pytest.raises(UserError, match="the training is unknown"):
        create_card(config_of(tmp_path))
    (tmp_path / "training.json").write_text(json.dumps([])[:1])
    with pytest.raises(UserError, match="the training is unknown"):
        create_card(config_of(tmp_path))
    assert not (tmp_path / "README.md").exists()


ENTRY = {"recipe": {"steps": 1, "batch_size": 2}, "wall_seconds": 90, "machine": "a machine", "figures": {"kind": 0.5}}


def test_a_record_is_read_as_it_is(tmp_path):
    (tmp_path / "training.json").write_text(json.dumps({"clip": ENTRY}))
    assert read_training_record(tmp_path / "training.json") == {"clip": ENTRY}


@pytest.mark.parametrize("value", [None, 1e9 + 0.5, [1], {"a": {}}, True])
@pytest.mark.parametrize("name", [*ENTRY, "recipe.steps", "recipe.batch_size", "notes", "torch", ""])
def test_a_record_of_wrong_entries_names_the_place(tmp_path, name, value):
    if name == "wall_seconds" and isinstance(value, float):
        pytest.skip("a valid entry")
    entry = json.loads(json.dumps(ENTRY))
    outer, _, inner = name.partition(".")
    if inner:
        entry[outer][inner] = value
    elif name:
        entry[name] = value
    (tmp_path / "training.json").write_text(json.dumps({"clip": entry if name else value}))
    with pytest.raises(UserError, match=r"training\.json is missing or damaged \(.*clip") as error:
        read_training_record(tmp_path / "training.json")
    assert name in str(error.value)

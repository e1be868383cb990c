"""The benchmark of single images: its cases, the sheet of samples, and result.json on tiny models of both editions."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storydiffusion.evaluation.benchmarks.text_to_image import GROUPS, SAMPLES, draw_case, keep_samples, measure_image
from storydiffusion.evaluation.result import load_result
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.images import HELD_OUT_SEED
from storydiffusion.storyworld.words import find_limits
from tests.conftest import run_verb, shipped_edition
from tests.helpers.world_model import build_world_model

every_edition = pytest.mark.parametrize("edition", EDITIONS.values(), ids=lambda edition: f"edition {edition.number}")


@every_edition
def test_cases_are_the_held_out_captions_and_true_labels_have_full_marks(edition):
    for number in range(200):
        case, truth = draw_case(edition, number), edition.sample(HELD_OUT_SEED, number)
        assert case.prompt.text == edition.caption(truth, number)
        assert find_limits(case.prompt.text, edition) == []
        labels = edition.get_labels(truth)
        reading = {name: labels[name] or values[-1] for name, values in edition.labels.items()}
        assert {value for value in measure_image(edition, case, reading).values() if value is not None} == {1}


def test_five_hundred_cases_have_enough_of_each_number_of_characters():
    counts = Counter(draw_case(EDITIONS[2], number).characters for number in range(500))
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) >= 30
    assert min(counts[1], counts[2]) >= 180


def test_the_sheet_shows_the_first_images_whatever_the_batches(tmp_path):
    cases = [draw_case(EDITIONS[1], number) for number in range(70)]
    shown = cases[:SAMPLES]
    images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(70)]
    for first in range(0, 70, 30):
        assert not (tmp_path / "samples.png").exists()
        keep_samples(cases[first : first + 30], images[first : first + 30], shown, tmp_path)
        if first == 60:
            break
    sheet = Image.open(tmp_path / "samples.png")
    assert sheet.size[0] == 12 + 8 * (16 + 12)
    assert sorted(file.stem for file in (tmp_path / "samples").iterdir()) == [f"{n:03d}" for n in range(SAMPLES)]
    assert sheet.getpixel((12 + 3 * 28 + 5, 12 + 5)) == (3, 0, 0)


@pytest.fixture(scope="module", params=EDITIONS)
def world_model(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    return request.param, build_world_model(tmp_path_factory.mktemp("world") / "model", request.param)


def test_images_are_generated_read_and_not_generated_again(world_model, tmp_path, capsys):
    edition, model = world_model
    small = ["benchmark=text2image", f"model.path={model}", "model.device=cpu", "model.video=null", "steps=1"]
    small += ["benchmark.images=9", "benchmark.batch=4", f"run_dir={tmp_path}/run"]
    outcome = run_verb("infer", small, capsys)
    assert outcome.code == 0, outcome.err
    result = load_result(tmp_path / "run" / "result.json")
    assert result.items == [f"image {number}" for number in range(9)]
    assert set(result.groups) <= set(GROUPS)
    assert result.settings["benchmark.edition"] == edition
    assert {"kind", "action", "place", "object"} < set(result.metrics)
    assert ("mood" in result.metrics) == (edition == 2)
    assert Image.open(tmp_path / "run" / "samples.png").width == 12 + 8 * (256 + 12)
    assert "| kind ↑ |" in (tmp_path / "run" / "table.md").read_text()
    before = json.loads((tmp_path / "run" / "records.json").read_text())["records"]
    labels = EDITIONS[edition].labels
    assert all(value in labels[name] for one in before for name, value in one["readings"][0].items())
    more = run_verb("infer", [*small, "benchmark.images=10"], capsys)
    assert more.code == 0, more.err
    assert json.loads((tmp_path / "run" / "records.json").read_text())["records"][:9] == before


@pytest.mark.parametrize("override", ["benchmark.images=1", "benchmark.batch=0"])
def test_bad_settings_are_refused_by_their_values(tmp_path, capsys, override):
    outcome = run_verb("infer", ["benchmark=text2image", override, f"run_dir={tmp_path}/run"], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert override in outcome.err


def test_a_classifier_of_another_edition_is_refused(tmp_path, capsys):
    model = build_world_model(tmp_path / "model", 2)
    (model / "storydiffusion.json").write_text(json.dumps({"kind": "miniature", "edition": 1}))
    small = ["benchmark=text2image", f"model.path={model}", "model.device=cpu", "model.video=null"]
    outcome = run_verb("infer", [*small, f"run_dir={tmp_path}/run"], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "draws StoryWorld's edition 1, but its attribute classifier reads edition 2" in outcome.err


def measure_source(source, folder, capsys):
    """Measure eight images of the shipped model and return the mean of each metric, and the samples."""
    small = ["benchmark=text2image", f"benchmark.source={source}", "model.device=cpu", "benchmark.images=8"]
    outcome = run_verb("infer", [*small, f"run_dir={folder}"], capsys)
    assert outcome.code == 0, outcome.err
    metrics = load_result(folder / "result.json").metrics
    values = {name: [value for value in metrics[name].values if value is not None] for name in ("kind", "place")}
    samples = np.stack([np.asarray(Image.open(file)) for file in sorted((folder / "samples").iterdir())])
    return {name: sum(found) / len(found) for name, found in values.items()}, samples.astype(float)


def test_true_images_bound_what_is_generated(tmp_path, capsys):
    rendered, true = measure_source("rendered", tmp_path / "rendered", capsys)
    reconstructed, decoded = measure_source("reconstructed", tmp_path / "reconstructed", capsys)
    assert rendered == {"kind": 1, "place": 1}
    assert reconstructed["place"] == 1
    assert 0 < ((decoded - true) ** 2).mean() < 255**2 * 10**-2  # more than 20 dB
    edition = shipped_edition()
    assert (true == [edition.render(edition.sample(HELD_OUT_SEED, number), 128) for number in range(8)]).all()


def test_an_unknown_source_is_refused(tmp_path, capsys):
    outcome = run_verb("infer", ["benchmark=text2image", "benchmark.source=true", f"run_dir={tmp_path}"], capsys)
    assert outcome.code == 1
    assert "generated, reconstructed, rendered" in outcome.err

"""Every mistake of a user ends in one sentence that names it, and leaves no output that looks finished."""

import os
import resource
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from storydiffusion.output.manifest import read_manifest
from tests.conftest import ROOT, STORY


def check(outcome, *needs):
    """Check for one sentence that names `needs`, and exit code 1."""
    assert outcome.code == 1, outcome
    assert len(outcome.sentences) == 1, outcome.err
    assert outcome.sentences[0].startswith("infer.py: ")
    assert "Traceback" not in outcome.err
    for need in needs:
        assert need in outcome.sentences[0]


def is_unfinished(run) -> bool:
    manifest = run / "manifest.json"
    return not (manifest.exists() and read_manifest(manifest).complete)


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("", "is empty"),
        ("title: [", "not valid YAML"),
        ("just words", "just words"),
        ("title: x\ncharacters: {}\npanels: []", "0 panels"),
        (STORY.replace("[Bo] in", "[Bob] in"), "[Bob]"),
        (STORY.replace("{Pip:", "{Zoe: a girl, Pip:"), "'Zoe'"),
        (STORY.replace("panels:", "panls:"), "panls"),
        (STORY + "style: Cubist\n", "Cubist"),
    ],
)
def test_a_story_that_cannot_be_generated(generate_story, tmp_path, story_file, text, needs):
    story_file.write_text(text)
    check(generate_story("run_dir=run"), str(story_file), needs)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["nowhere.yaml", "nowhere", "."])
def test_a_story_that_is_not_there(generate_story, path):
    check(generate_story(f"story={path}"), path)


@pytest.mark.parametrize(
    ("override", "needs"),
    [
        ("csa.rate=1.5", ["csa.rate", "1.5"]),
        ("csa.rate=-0.1", ["csa.rate", "-0.1"]),
        ("csa.rate=lots", ["csa.rate", "lots"]),
        ("csa.variant=eq3", ["csa.variant", "eq3", "eq2"]),
        ("csa.sampler=gauss", ["csa.sampler", "gauss"]),
        ("csa.start=1", ["start", "end"]),
        ("height=100", ["height=100", "104"]),
        ("width=7", ["width=7"]),
        ("steps=0", ["steps=0"]),
        ("steps=-3", ["steps=-3"]),
        ("seed=-1", ["seed=-1"]),
        ("seed=99999999999999999999", ["seed=99999999999999999999"]),
        ("sede=1", ["'sede'", "'seed'"]),
        ("+csa.rat=1", ["'csa.rat'", "'csa.rate'"]),
        ("model=sd2", ["'sd2'", "sd15"]),
        ("model.path=/nowhere/at/all", ["/nowhere/at/all"]),
        ("model.path=package://nothing", ["'nothing'"]),
    ],
)
def test_a_setting_that_cannot_be(generate_story, tmp_path, override, needs):
    check(generate_story("run_dir=run", override), *needs)
    assert not (tmp_path / "run").exists()


def test_impossible_combinations(generate_story, tmp_path):
    check(generate_story("run_dir=run", "csa=shared_row", "csa.sampler=progressive"), "progressive", "shared_row")
    check(generate_story("run_dir=run", "+csa.tile_size=3"), "tile_size", "eq2")
    check(generate_story("run_dir=run", "model.device=cpu", "model.offload=sequential"), "model.offload=sequential")
    assert not (tmp_path / "run").exists()


def test_a_grid_that_the_unet_does_not_have(generate_story, tmp_path):
    check(generate_story("run_dir=run", "csa.rate={64: 0.5}"), "64")
    assert is_unfinished(tmp_path / "run")


def test_a_truncated_weights_file(generate_story, tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    check(generate_story(f"model.path={folder}", "run_dir=run"), str(file), "truncated")
    assert not (tmp_path / "run").exists()


def test_weights_of_the_wrong_shape(generate_story, tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_in.bias"] = tensors["decoder.conv_in.bias"][:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    check(generate_story(f"model.path={folder}", "run_dir=run"), str(folder / "vae"))
    assert is_unfinished(tmp_path / "run")


def test_a_hub_that_cannot_be_reached(tmp_path, story_file):
    done = subprocess.run(
        [sys.executable, str(ROOT / "infer.py"), f"story={story_file}", "model=sd15", "run_dir=run"],
        cwd=tmp_path,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in lines[0]
    assert "model.path=FOLDER" in lines[0]
    assert not (tmp_path / "run").exists()


def test_an_output_folder_below_a_file(generate_story, tmp_path):
    (tmp_path / "file").write_text("in the way")
    check(generate_story("run_dir=file/run"), "file/run")


def test_an_output_folder_that_is_a_file(generate_story, tmp_path):
    (tmp_path / "run").write_text("in the way")
    check(generate_story("run_dir=run"), "run")
    assert (tmp_path / "run").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(generate_story, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    check(generate_story("run_dir=locked/run"), "locked/run")


@pytest.mark.parametrize("limit", [100, 5_000, 30_000])
def test_a_full_disk(generate_story, tmp_path, limit):
    """No file may grow beyond `limit` bytes: the manifest, a panel or the page fails with the system's own error."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        outcome = generate_story("run_dir=run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    check(outcome, "cannot write", "run/")
    run = tmp_path / "run"
    assert is_unfinished(run)
    assert not list(run.rglob("*.tmp"))
    assert not (run / "page.png").exists()
    assert generate_story("run_dir=run").code == 0  # once there is room, the same command resumes

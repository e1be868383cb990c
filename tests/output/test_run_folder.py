import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.output.manifest import Manifest, PanelRecord, read_manifest
from storydiffusion.output.run_folder import PROGRESS, RunFolder

PLAN = Manifest("Tale", "tiny", "random", {"seed": 1, "run_dir": "a", "overwrite": False, "story": "x.yaml"})
PANELS = [PanelRecord("", f"prompt {n}", "", f"caption {n}", n, "") for n in range(3)]
PICTURES = [Image.new("RGB", (64, 64), (80 * n, 0, 0)) for n in range(3)]
OTHER = replace(PLAN, config={**PLAN.config, "seed": 2})


def told(path):
    run = RunFolder(path, PLAN)
    run.finish(PICTURES, PANELS, {"seed": 1}, seconds={"telling": 1.0})
    return run


def test_a_finished_folder_holds_everything_and_no_progress(tmp_path):
    run = RunFolder(tmp_path / "run", PLAN)
    assert not read_manifest(run.path / "manifest.json").complete
    run.save_progress(3, torch.zeros(1))
    run.finish(PICTURES, PANELS, {"seed": 1}, seconds={"telling": 1.0})
    names = sorted(p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file())
    assert names == [
        "manifest.json", "page.png", "panels/001.png", "panels/002.png", "panels/003.png", "report.html",
    ]  # fmt: skip
    manifest = read_manifest(run.path / "manifest.json")
    assert manifest.complete
    assert [panel.caption for panel in manifest.panels] == ["caption 0", "caption 1", "caption 2"]
    assert manifest.seconds == {"telling": 1.0}


def test_progress_comes_back_bit_for_bit(tmp_path):
    latents = torch.randn(3, 4, 8, 8).to(torch.bfloat16)
    RunFolder(tmp_path, PLAN).save_progress(7, latents)
    found = RunFolder(tmp_path, PLAN).progress()
    assert found is not None
    assert found[0] == 7
    assert found[1].dtype == torch.bfloat16
    assert torch.equal(found[1], latents)


def test_a_finished_story_is_known_wherever_its_script_lies(tmp_path):
    told(tmp_path)
    again = replace(PLAN, config={**PLAN.config, "run_dir": "b", "overwrite": True, "story": "y.yaml"})
    assert RunFolder(tmp_path, again).is_complete
    assert (tmp_path / "page.png").exists()


def test_a_missing_result_makes_it_unfinished(tmp_path):
    told(tmp_path)
    (tmp_path / "panels" / "002.png").unlink()
    assert not RunFolder(tmp_path, PLAN).is_complete


def test_another_configuration_is_refused_and_nothing_is_touched(tmp_path):
    told(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for plan in (OTHER, replace(PLAN, weights={"unet": "0"}), replace(PLAN, title="Other")):
        with pytest.raises(UserError, match="overwrite=true"):
            RunFolder(tmp_path, plan)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_unfinished_work_of_another_configuration_is_refused_too(tmp_path):
    RunFolder(tmp_path, PLAN).save_progress(1, torch.zeros(1))
    with pytest.raises(UserError, match="another story or configuration"):
        RunFolder(tmp_path, OTHER)


def test_a_folder_without_any_work_yet_is_free(tmp_path):
    RunFolder(tmp_path, PLAN)
    RunFolder(tmp_path, OTHER)
    assert read_manifest(tmp_path / "manifest.json").config["seed"] == 2


def test_overwrite_starts_afresh(tmp_path):
    told(tmp_path)
    run = RunFolder(tmp_path, OTHER, overwrite=True)
    assert not run.is_complete
    assert not (tmp_path / "page.png").exists()
    assert not list((tmp_path / "panels").iterdir())


def test_overwrite_goes_on_with_the_unfinished_work_of_the_same_command(tmp_path):
    told(tmp_path)
    RunFolder(tmp_path, PLAN, overwrite=True).save_progress(2, torch.ones(1))
    found = RunFolder(tmp_path, PLAN, overwrite=True).progress()
    assert found is not None
    assert found[0] == 2


def test_pictures_without_a_manifest_are_not_ours_to_replace(tmp_path):
    (tmp_path / "page.png").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        RunFolder(tmp_path, PLAN)
    assert (tmp_path / "page.png").read_bytes() == b"precious"


def test_a_damaged_manifest_is_named(tmp_path):
    told(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        RunFolder(tmp_path, PLAN)
    assert not RunFolder(tmp_path, PLAN, overwrite=True).is_complete


def test_damaged_progress_is_named(tmp_path):
    run = RunFolder(tmp_path, PLAN)
    (tmp_path / PROGRESS).write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged: remove it"):
        run.progress()


def test_an_interrupt_keeps_the_last_step(tmp_path):
    run = RunFolder(tmp_path, PLAN)

    def work():
        with run.keeping_progress() as keep:
            for step in (1, 2):
                keep(step, torch.full((2,), float(step)))
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="after step 2"):
        work()
    found = run.progress()
    assert found is not None
    assert found[0] == 2
    assert found[1].tolist() == [2.0, 2.0]

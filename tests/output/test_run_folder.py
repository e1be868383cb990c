import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.output.manifest import Manifest, PanelRecord, VideoRecord, read_manifest
from storydiffusion.output.run_folder import PROGRESS, RunFolder, describe_panels
from storydiffusion.output.video_file import write_video

PLAN = Manifest("Tale", "tiny", "random", {"seed": 1, "run_dir": "a", "overwrite": False, "story": "x.yaml"})
PANELS = [PanelRecord("", f"prompt {n}", "", f"caption {n}", n, "") for n in range(3)]
PICTURES = [Image.new("RGB", (64, 64), (80 * n, 0, 0)) for n in range(3)]
OTHER = replace(PLAN, config={**PLAN.config, "seed": 2})


VIDEO = VideoRecord("video.mp4", {"frames": 8, "fps": 8.0}, {"predictor": "ab"})
FILM = replace(PLAN, config={**PLAN.config, "video": "on", "model": {"steps": 3, "video": {"frames": 8}}}, video=VIDEO)


def finish(path, plan=PLAN):
    run = RunFolder(path, plan)
    if not run.panels:
        run.keep_panels(PICTURES, PANELS, {"panels": 1.0})
    run.make_page()
    if run.lacks_video:
        assert plan.video is not None
        write_video(run.path / "video.mp4", [np.zeros((16, 16, 3), np.uint8)] * plan.video.settings["frames"], 8)
        (run.path / "transitions").mkdir(exist_ok=True)
        if not (strip := run.path / "transitions" / "001-002.png").exists():
            strip.write_bytes(b"strip")
    run.finish({"seed": 1}, versions={}, seconds={"video": 2.0} if plan.video else {})
    return run


def test_a_finished_folder_holds_everything_and_no_progress(tmp_path):
    run = RunFolder(tmp_path / "run", PLAN)
    assert not read_manifest(run.path / "manifest.json").complete
    run.save_progress(3, torch.zeros(1))
    run.keep_panels(PICTURES, PANELS, {"panels": 1.0})
    assert not read_manifest(run.path / "manifest.json").complete
    run.finish({"seed": 1}, versions={}, seconds={})
    names = sorted(p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file())
    assert names == [
        "manifest.json", "page.png", "panels/001.png", "panels/002.png", "panels/003.png", "report.html",
    ]  # fmt: skip
    manifest = read_manifest(run.path / "manifest.json")
    assert manifest.complete
    assert [panel.caption for panel in manifest.panels] == ["caption 0", "caption 1", "caption 2"]
    assert manifest.seconds == {"panels": 1.0}


def test_the_video_is_part_of_it(tmp_path):
    finish(tmp_path, FILM)
    manifest = read_manifest(tmp_path / "manifest.json")
    assert manifest.video == replace(VIDEO, sha256=compute_sha256(tmp_path / "video.mp4"))
    assert manifest.seconds == {"panels": 1.0, "video": 2.0}
    assert "<video" in (tmp_path / "report.html").read_text()
    assert RunFolder(tmp_path, FILM).is_complete
    (tmp_path / "video.mp4").unlink()
    run = RunFolder(tmp_path, FILM)
    assert not run.is_complete
    assert len(run.panels) == 3


def test_another_video_keeps_the_panels(tmp_path):
    before = finish(tmp_path, FILM).panels
    pictures = {file: file.stat().st_mtime_ns for file in (tmp_path / "panels").iterdir()}
    other = replace(FILM, video=replace(VIDEO, settings={"frames": 16}))
    other.config["model"] = {"steps": 3, "video": {"frames": 16}}
    for plan in (other, replace(FILM, video=replace(VIDEO, weights={"predictor": "cd"}))):
        run = RunFolder(tmp_path, plan)
        assert not run.is_complete
        assert run.panels == before
        finish(tmp_path, plan)
        assert RunFolder(tmp_path, plan).is_complete
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "panels").iterdir()} == pictures


def test_a_video_may_come_later_and_be_left_out_again(tmp_path):
    silent = replace(FILM, config={**FILM.config, "video": "off"}, video=None)
    finish(tmp_path, silent)
    assert RunFolder(tmp_path, silent).is_complete
    assert not RunFolder(tmp_path, FILM).is_complete
    finish(tmp_path, FILM)
    assert RunFolder(tmp_path, silent).is_complete
    assert (tmp_path / "video.mp4").exists()


def test_other_panels_are_still_refused(tmp_path):
    finish(tmp_path, FILM)
    with pytest.raises(UserError, match="overwrite=true"):
        RunFolder(tmp_path, replace(FILM, config={**FILM.config, "model": {"steps": 4, "video": {"frames": 8}}}))


def test_panels_that_are_done_are_kept_when_the_video_is_interrupted(tmp_path):
    RunFolder(tmp_path, FILM).keep_panels(PICTURES, PANELS, {"panels": 1.0})
    for overwrite in (False, True):  # as an interrupted run resumes
        run = RunFolder(tmp_path, FILM, overwrite)
        assert [panel.caption for panel in run.panels] == ["caption 0", "caption 1", "caption 2"]
    (tmp_path / "panels" / "001.png").unlink()
    assert RunFolder(tmp_path, FILM).panels == ()


def test_progress_comes_back_bit_for_bit(tmp_path):
    latents = torch.randn(3, 4, 8, 8).to(torch.bfloat16)
    RunFolder(tmp_path, PLAN).save_progress(7, latents)
    found = RunFolder(tmp_path, PLAN).progress()
    assert found is not None
    assert found[0] == 7
    assert found[1].dtype == torch.bfloat16
    assert torch.equal(found[1], latents)


def test_progress_of_another_run_is_not_resumed(tmp_path, capsys):
    RunFolder(tmp_path / "one", PLAN).save_progress(7, torch.zeros(1))
    moved = replace(PLAN, config={**PLAN.config, "run_dir": "elsewhere", "overwrite": True})
    assert RunFolder(tmp_path / "one", moved).progress() is not None
    for plan in (OTHER, replace(PLAN, weights={"unet": "0"}), replace(PLAN, title="Other")):
        run = RunFolder(tmp_path / plan.title / str(plan.weights), plan)
        (run.path / PROGRESS).write_bytes((tmp_path / "one" / PROGRESS).read_bytes())
        assert run.progress() is None
        assert "is of another run" in capsys.readouterr().err


def test_a_finished_story_is_known_wherever_its_script_lies(tmp_path):
    finish(tmp_path)
    again = replace(PLAN, config={**PLAN.config, "run_dir": "b", "overwrite": True, "story": "y.yaml"})
    assert RunFolder(tmp_path, again).is_complete
    assert (tmp_path / "page.png").exists()


RESULTS = ("panels/002.png", "page.png", "report.html", "video.mp4", "transitions/001-002.png")
DAMAGES = {
    "missing": lambda file: file.unlink(),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "exchanged": lambda file: file.write_bytes(b"other"),
}


def contents(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", RESULTS)
def test_a_damaged_result_alone_is_named_and_made_again(tmp_path, name, damage):
    finish(tmp_path, FILM)
    before = contents(tmp_path)
    others = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*") if file.is_file()}
    DAMAGES[damage](tmp_path / name)
    run = RunFolder(tmp_path, FILM)
    assert not run.is_complete
    assert run.damage == {name: "is missing" if damage == "missing" else "has changed"}
    assert (run.panels == ()) == name.startswith("panels")
    del run  # killed here: what is damaged stays so
    run = RunFolder(tmp_path, FILM)
    assert (run.panels == ()) == name.startswith("panels")
    finish(tmp_path, FILM)
    assert RunFolder(tmp_path, FILM).is_complete
    assert contents(tmp_path) == before
    made = {file.relative_to(tmp_path).as_posix() for file, time in others.items() if file.stat().st_mtime_ns != time}
    assert made == {name, "manifest.json"} | ({"video.mp4"} if name.startswith("transitions") else set())


def test_other_panels_make_everything_of_them_anew(tmp_path):
    finish(tmp_path, FILM)
    before = contents(tmp_path)
    (tmp_path / "panels" / "002.png").unlink()
    run = RunFolder(tmp_path, FILM)
    run.keep_panels([Image.new("RGB", (64, 64), (0, 9, 0))] * 3, PANELS, {})  # as on another machine
    assert run.lacks_video
    finish(tmp_path, FILM)
    changed = {name for name, content in contents(tmp_path).items() if content != before[name]}
    assert changed == {"panels/002.png", "page.png", "report.html", "manifest.json"}
    assert RunFolder(tmp_path, FILM).is_complete


def test_without_a_video_in_the_command_an_intact_one_stays_and_a_damaged_one_is_left_out(tmp_path):
    silent = replace(FILM, config={**FILM.config, "video": "off"}, video=None)
    finish(tmp_path, FILM)
    before = contents(tmp_path)
    (tmp_path / "page.png").unlink()
    finish(tmp_path, silent)
    assert {**contents(tmp_path), "manifest.json": before["manifest.json"]} == before
    assert RunFolder(tmp_path, FILM).is_complete
    (tmp_path / "video.mp4").write_bytes(b"")
    finish(tmp_path, silent)
    assert read_manifest(tmp_path / "manifest.json").video is None
    assert "<video" not in (tmp_path / "report.html").read_text()
    assert RunFolder(tmp_path, silent).is_complete
    assert not RunFolder(tmp_path, FILM).is_complete


def test_folders_of_manifests_without_results_stay_finished(tmp_path):
    finish(tmp_path, FILM)
    file = tmp_path / "manifest.json"
    content = json.loads(file.read_text())
    del content["results"]
    file.write_text(json.dumps(content))
    assert RunFolder(tmp_path, FILM).is_complete
    for name in ("panels/002.png", "page.png", "report.html", "video.mp4"):
        file.write_text(json.dumps(content))
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        assert RunFolder(tmp_path, FILM).damage == {name: "is missing"}
        (tmp_path / name).write_bytes(kept)


def test_drafts_of_killed_processes_are_removed(tmp_path):
    finish(tmp_path, FILM)
    before = contents(tmp_path)
    drafts = (".video.mp4.4242.tmp", "panels/.001.png.1.tmp", "transitions/.001-002.png.7.tmp", "portraits/.a.9.tmp")
    for name in (*drafts, ".notes.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert RunFolder(tmp_path, FILM).is_complete
    assert contents(tmp_path) == {**before, ".notes.tmp": b"x"}


def test_another_configuration_is_refused_and_nothing_is_touched(tmp_path):
    finish(tmp_path)
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
    finish(tmp_path, FILM)
    run = RunFolder(tmp_path, OTHER, overwrite=True)
    assert not run.is_complete
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["manifest.json"]


def test_overwrite_goes_on_with_the_unfinished_work_of_the_same_command(tmp_path):
    finish(tmp_path)
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
    finish(tmp_path)
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


KEYED = [replace(panel, key=f"key {panel.seed}") for panel in PANELS]


def keyed(tmp_path, title="Tale", plan=KEYED, overwrite=False):
    return RunFolder(tmp_path, replace(PLAN, title=title), overwrite, lambda: plan)


def make_keyed(tmp_path):
    run = RunFolder(tmp_path, PLAN)
    run.keep_panels(PICTURES, KEYED, {"panels": 1.0})
    run.finish({}, {}, {})


def test_an_edit_that_keeps_all_panels_needs_no_permission_and_a_killed_one_resumes(tmp_path):
    make_keyed(tmp_path)
    before = contents(tmp_path)
    for run in (keyed(tmp_path, "Other"), keyed(tmp_path, "Other")):  # the first is killed here
        assert not run.is_complete
        assert run.panels == ()
        assert sorted(run.kept_images(KEYED)) == [0, 1, 2]
    run.keep_panels(list(run.kept_images(KEYED).values()), KEYED, {})
    run.finish({}, {}, {})
    after = contents(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"manifest.json", "page.png", "report.html"}
    assert keyed(tmp_path, "Other").is_complete


def test_an_edit_that_loses_or_adds_an_image_is_refused_before_anything_changes(tmp_path):
    make_keyed(tmp_path)
    before = contents(tmp_path)
    other = replace(KEYED[1], key="new")
    for plan, made in (
        ([KEYED[0], other, KEYED[2]], "panel 2"),
        ([*KEYED, other], "panel 4"),
        (KEYED[:2], "no panel"),
        ([other], "panel 1"),
        ([other, other], "all 2 panels"),
    ):
        with pytest.raises(UserError, match=f"pass overwrite=true, which generates {made}$"):
            keyed(tmp_path, "Other", plan)
        assert contents(tmp_path) == before


def test_images_are_kept_by_key_wherever_they_move(tmp_path):
    make_keyed(tmp_path)
    plan = [KEYED[2], KEYED[0]]
    run = keyed(tmp_path, "Other", plan, overwrite=True)
    kept = run.kept_images(plan)
    run.keep_panels([kept[0], kept[1]], plan, {})
    run.finish({}, {}, {})
    for number, picture in ((1, PICTURES[2]), (2, PICTURES[0])):
        assert Image.open(tmp_path / "panels" / f"00{number}.png").tobytes() == picture.tobytes()
    assert not (tmp_path / "panels" / "003.png").exists()


def test_a_damaged_image_is_not_kept(tmp_path):
    make_keyed(tmp_path)
    (tmp_path / "panels" / "002.png").write_bytes(b"other")
    with pytest.raises(UserError, match="another story or configuration"):
        keyed(tmp_path, "Other")
    assert sorted(keyed(tmp_path, "Other", overwrite=True).kept_images(KEYED)) == [0, 2]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [((), "no panel"), ((2,), "panel 2"), ((1, 2), "panels 1 and 2"), ((1, 2, 4), "panels 1, 2 and 4"),
     ((1, 2, 3, 4, 5), "all 5 panels")],
)  # fmt: skip
def test_panels_in_words(numbers, words):
    assert describe_panels(numbers, 5) == words

"""Projects without a browser: what the studio makes is a run folder of infer, and the other way round."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from storydiffusion.errors import UserError
from storydiffusion.output.folder_lock import LOCK, own_folder
from storydiffusion.output.manifest import read_manifest, write_manifest
from storydiffusion.studio import edits
from storydiffusion.studio.look import Look
from storydiffusion.studio.project import find_project, parse_script
from storydiffusion.studio.studio import Studio
from storydiffusion.writer.story_file import compose_story
from tests.conftest import STORY
from tests.helpers.folder_owner import Owner
from tests.studio.conftest import SMALL, build_studio, finish

W = "window"
LOOK = Look(seed=0, layout="auto", with_video=False)


def make_story(studio: Studio, look: Look = LOOK) -> str:
    name = studio.create(STORY)
    studio.generate(name, W, look)
    assert finish(studio, name).state == "done"
    return name


def panels(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / "panels").iterdir())]


def test_a_story_of_the_studio_is_that_of_infer(studio, infer, tiny_model, tmp_path):
    name = make_story(studio, Look(seed=5, layout="strip", with_video=False))
    run = studio.root / name
    assert name == "two-friends"
    settings = [f"story={run}/story.yaml", f"model.path={tiny_model}", *SMALL, "seed=5", "page.layout=strip"]
    assert "already exists" in infer(*settings, f"run_dir={run}", "video=off").out
    assert infer(*settings, "run_dir=fresh").code == 0
    assert panels(run) == panels(tmp_path / "fresh")
    assert (run / "page.png").read_bytes() == (tmp_path / "fresh" / "page.png").read_bytes()
    assert {file.name for file in run.iterdir()} == {
        "features", "manifest.json", "page.png", "panels", "report.html", "story.yaml",
    }  # fmt: skip


def test_a_story_of_infer_opens_and_changes_as_infer_changes_it(generate_story, make_studio, tmp_path, capsys):
    assert generate_story("run_dir=runs/mine", "seed=7", "csa.rate={1: 0.5, 2: 0.25}").code == 0
    studio = make_studio()
    project = studio.open("mine", W)
    assert (project.config.seed, project.config.steps, project.config.csa.rate) == (7, 6, {1: 0.5, 2: 0.25})
    assert [panel.caption for panel in project.story.panels] == ["One.", "Two.", "Three."]
    assert [record.file for record in project.records] == ["panels/001.png", "panels/002.png", "panels/003.png"]
    look = Look.read(project.config)
    assert not studio.find_changes("mine", look).differences
    before = panels(project.folder)
    studio.edit("mine", W, lambda story: edits.change_panel(story, 2, {"caption": "<b>Other</b>"}))
    changes = studio.find_changes("mine", look)
    assert (changes.made, len(changes.differences)) == ((), 1)
    assert "caption of panel 2" in changes.differences[0]
    studio.generate("mine", W, look)
    assert finish(studio, "mine").state == "done"
    assert panels(project.folder) == before
    assert studio.read("mine").manifest.panels[1].caption == "<b>Other</b>"


def test_takes_are_made_chosen_and_gone_back_from(studio):
    name = make_story(studio)
    folder = studio.root / name
    before = panels(folder)
    studio.retake(name, W, 2, 2)
    assert finish(studio, name).message == "2 new takes of panel 2: choose one below it"
    assert panels(folder) == before
    studio.choose(name, W, 2, 1)
    assert finish(studio, name).state == "done"
    assert panels(folder) == [before[0], (folder / "takes/002-001.png").read_bytes(), before[2]]
    studio.choose(name, W, 2, 0)
    finish(studio, name)
    assert panels(folder) == before
    assert not studio.find_changes(name, LOOK).differences


def test_panels_at_the_end_leave_the_others_as_they_are(studio):
    name = make_story(studio)
    before = panels(studio.root / name)
    studio.edit(name, W, edits.add_panel)
    studio.edit(name, W, lambda story: edits.change_panel(story, 4, {"prompt": "[Bo] runs", "caption": "Four."}))
    changes = studio.find_changes(name, LOOK)
    assert (changes.is_longer, changes.panels) == (True, 4)
    studio.generate(name, W, LOOK)
    assert finish(studio, name).state == "done"
    assert panels(studio.root / name)[:3] == before
    assert len(panels(studio.root / name)) == 4


def test_a_locked_panel_refuses_what_would_replace_it(studio):
    name = make_story(studio)
    before = panels(studio.root / name)
    studio.edit(name, W, lambda story: edits.change_panel(story, 1, {"lock": True}))
    assert not studio.find_changes(name, LOOK).differences  # a lock changes no result
    with pytest.raises(UserError, match="panel 1 is locked"):
        studio.edit(name, W, lambda story: edits.change_panel(story, 1, {"prompt": "[Pip] in the park"}))
    studio.edit(name, W, lambda story: edits.change_panel(story, 3, {"prompt": "[Pip] and [Bo] on the beach"}))
    for start in (lambda: studio.generate(name, W, LOOK), lambda: studio.retake(name, W, 1, 1)):
        start()
        state = finish(studio, name)
        assert state.state == "failed"
        assert "panel 1 is locked" in state.message
    studio.retake(name, W, 3, 1)
    assert finish(studio, name).state == "done"
    assert panels(studio.root / name) == before


def test_a_cancelled_story_resumes_with_the_same_images(make_studio, tmp_path):
    whole = make_studio("steps=6")
    name = make_story(whole)
    expected = panels(whole.root / name)
    other = whole.create(STORY)

    def start_and_cancel() -> None:
        original = whole.networks.load_images

        def load(model):
            whole.jobs.cancel(other)
            return original(model)

        whole.networks.load_images = load
        whole.generate(other, W, LOOK)
        state = finish(whole, other)
        whole.networks.load_images = original
        assert (state.state, "step 1" in state.message) == ("cancelled", True)

    start_and_cancel()
    assert not whole.read(other).manifest.complete
    assert (whole.root / other / ".progress.safetensors").exists()
    whole.generate(other, W, LOOK)
    assert finish(whole, other).state == "done"
    assert panels(whole.root / other) == expected


def test_exports_are_those_of_the_command(studio):
    name = make_story(studio)
    studio.export(name, W, ["pdf", "cbz"], "a4")
    assert finish(studio, name).message == "exported story.pdf, story.cbz"
    assert (studio.root / name / "exports" / "story.pdf").read_bytes().startswith(b"%PDF")
    for exports, sentence in (([], "no format"), (["doc"], "exports=doc")):
        with pytest.raises(UserError, match=sentence):
            studio.export(name, W, exports, None)
    studio.export(name, W, ["gif"], None)
    assert "there is no video" in finish(studio, name).message


def test_ideas_texts_and_the_example_become_projects(studio):
    name, _ = studio.write("a cat finds a ball", panels=4, seed=2)
    assert (name, len(studio.read(name).story.panels)) == ("a-cat-finds-a-ball", 4)
    again, _ = studio.write("a cat finds a ball", panels=4, seed=2)
    assert again == "a-cat-finds-a-ball-2"
    assert studio.read(again).story == studio.read(name).story
    text, _ = studio.write("A cat runs. The cat jumps.", is_text=True, panels=6)
    assert [panel.caption for panel in studio.read(text).story.panels] == ["A cat runs.", "The cat jumps."]
    assert studio.create_example() in studio.list_projects()
    assert set(studio.list_projects()) >= {name, again, text}
    with pytest.raises(UserError, match="nothing to write from"):
        studio.write("…")


def test_a_writer_that_takes_its_time_blocks_no_edit(studio, monkeypatch):
    name, began, go_on = studio.create(STORY), threading.Event(), threading.Event()

    def compose(*given):
        began.set()
        assert go_on.wait(30)
        return compose_story(*given)

    monkeypatch.setattr("storydiffusion.studio.studio.compose_story", compose)
    writing = threading.Thread(target=studio.write, args=("a cat",))
    writing.start()
    assert began.wait(30)
    assert studio.edit(name, W, lambda story: replace(story, title="Mine")).story.title == "Mine"
    go_on.set()
    writing.join(30)
    assert "a-cat" in studio.list_projects()


def test_one_window_changes_a_project_and_another_is_told(studio):
    name = studio.create(STORY)
    studio.open(name, "first")
    for act in (
        lambda: studio.open(name, "second"),
        lambda: studio.edit(name, "second", edits.add_panel),
        lambda: studio.generate(name, "second", LOOK),
    ):
        with pytest.raises(UserError, match=f"{name} is open in another window"):
            act()
    studio.open(studio.create(STORY), "first")  # a window has one project
    studio.open(name, "second")


def test_a_folder_that_a_command_owns_is_left_alone(studio):
    name = studio.create(STORY)
    owner = Owner(studio.root / name)
    with pytest.raises(UserError, match="is in use by process"):
        studio.edit(name, W, edits.add_panel)
    studio.generate(name, W, LOOK)
    assert "is in use by process" in finish(studio, name).message
    owner.release()
    studio.edit(name, W, edits.add_panel)
    assert not (studio.root / name / LOCK).exists()


def test_a_refused_change_leaves_the_story(studio):
    name = studio.create(STORY)
    file = studio.root / name / "story.yaml"
    before = file.read_bytes()
    for change in (
        lambda story: edits.change_panel(story, 1, {"prompt": "[Zed] runs"}),
        lambda story: edits.change_panel(story, 9, {"caption": "x"}),
        lambda story: edits.change_panel(story, 1, {"says": "x" * 500}),
        lambda story: edits.change_style(story, "Cubism"),
        lambda story: parse_script("title: x\npanels: ["),
    ):
        with pytest.raises(UserError):
            studio.edit(name, W, change)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["../out", "a/b", "/etc", "..", ".hidden", "", "x" * 100, "a\x00b", "nothing"])
def test_names_lead_to_projects_alone(studio, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "story.yaml").write_text(STORY)
    with pytest.raises(UserError):
        find_project(studio.root, name)
    with pytest.raises(UserError):
        studio.edit(name, W, edits.add_panel)
    assert (tmp_path / "out" / "story.yaml").read_text() == STORY


def test_a_script_names_no_files(studio):
    with pytest.raises(UserError, match="pose files"):
        studio.create(STORY.replace("caption: One.", "pose: /etc/hostname"))
    assert studio.list_projects() == []


def test_a_manifest_refers_to_nothing(studio, monkeypatch):
    monkeypatch.setenv("SECRET_OF_TEST", "secret")
    name = make_story(studio)
    file = studio.root / name / "manifest.json"
    manifest = read_manifest(file)
    manifest.config["negative"] = "${oc.env:SECRET_OF_TEST}"
    write_manifest(file, manifest)
    assert studio.read(name).config.negative == "${oc.env:SECRET_OF_TEST}"


def test_settings_of_another_version_are_named(studio):
    name = make_story(studio)
    file = studio.root / name / "manifest.json"
    data = json.loads(file.read_text())
    data["config"]["colour"] = 3
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match="settings of another version: there is no key 'colour'"):
        studio.read(name)
    del data["config"]["colour"]
    del data["config"]["hold"]
    file.write_text(json.dumps(data))
    assert studio.read(name).config.hold == studio.defaults.hold


def test_images_follow_their_prompts_when_panels_move(studio):
    name = make_story(studio)
    files = [record.file for record in studio.read(name).records]
    moved = studio.edit(name, W, lambda story: edits.move_panel(story, 3, -2))
    assert [record.file for record in moved.records] == [files[2], files[0], files[1]]
    fewer = studio.edit(name, W, lambda story: edits.delete_panel(story, 2))
    assert [record.file for record in fewer.records] == [files[2], files[1]]
    longer = studio.edit(name, W, edits.add_panel)
    assert longer.records[2] is None


def test_a_model_stays_loaded(studio):
    name = make_story(studio)
    loaded = studio.networks._images
    studio.retake(name, W, 1, 1)
    assert finish(studio, name).state == "done"
    assert studio.networks._images is loaded is not None


def test_folders_that_are_no_stories_are_not_listed(studio):
    for folder in ("empty", ".hidden", "benchmark"):
        (studio.root / folder).mkdir(parents=True)
    (studio.root / "benchmark" / "result.json").write_text("{}")
    (studio.root / ".hidden" / "story.yaml").write_text(STORY)
    assert studio.list_projects() == []
    studio.create(STORY)
    assert studio.list_projects() == ["two-friends"]


def test_a_new_studio_opens_what_another_left(studio, tiny_model):
    name = make_story(studio)
    other = build_studio(studio.root, tiny_model)
    assert other.open(name, "other window").manifest.complete
    other.close()
    with own_folder(studio.root / name):
        pass

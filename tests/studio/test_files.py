"""What the browser may fetch of a project, and that its texts run nothing."""

from dataclasses import replace

import pytest

from storydiffusion.errors import UserError
from storydiffusion.output.manifest import Manifest
from storydiffusion.studio import edits, views
from storydiffusion.studio.files import MEDIA_TYPES, find_file
from storydiffusion.studio.jobs import JobState
from storydiffusion.studio.project import parse_script, read_script
from tests.conftest import STORY
from tests.output.test_report import EVIL, HOSTILE, Page


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "runs" / "mia"
    for name in ("panels/001.png", "takes/001-002.png", "page.png", "video.mp4", "report.html", "exports/story.pdf",
                 "exports/001-002.gif", "exports/notes.txt", "panels/notes.png", "story.yaml", ".lock"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"content")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return folder


def test_results_may_be_fetched(folder):
    for name in ("panels/001.png", "takes/001-002.png", "page.png", "video.mp4", "report.html", "exports/story.pdf"):
        file = find_file(folder.parent, "mia", name)
        assert file == folder / name
        assert file.suffix in MEDIA_TYPES


@pytest.mark.parametrize(
    "file",
    ["story.yaml", ".lock", "manifest.json", "panels/notes.png", "exports/notes.txt", "exports", "panels/002.png",
     "../../secret.png", "panels/../../../secret.png", "/etc/passwd", "exports/../story.pdf", "", "panels/001.png/x",
     "exports/x/story.pdf"],
)  # fmt: skip
def test_nothing_else_may_be_fetched(folder, file):
    with pytest.raises(UserError):
        find_file(folder.parent, "mia", file)


def test_links_lead_nowhere_else(folder, tmp_path):
    (folder / "panels" / "001.png").unlink()
    (folder / "panels" / "001.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="leads out of the project"):
        find_file(folder.parent, "mia", "panels/001.png")


def test_hostile_texts_are_shown_as_they_are(studio):
    name = studio.create(STORY)

    def spoil(story):
        story = edits.change_panel(story, 1, {"caption": EVIL, "says": "".join(HOSTILE[:3])})
        return edits.describe_character(edits.change_title(story, EVIL), "Pip", EVIL.replace("[", "").replace("]", ""))

    project = studio.edit(name, "w", spoil)
    assert project.story.panels[0].caption == EVIL.strip()
    shown = replace(project, manifest=None)
    job = JobState(1, EVIL, "failed", message=EVIL)
    for html in (
        views.show_panel(shown, 1),
        views.show_portrait(shown, "Pip"),
        views.show_results(shown),
        views.show_job(job),
        views.show_job(replace(job, state="running", stage=EVIL)),
        views.show_notice(EVIL),
        views.render("image", url="/projects/x", text=EVIL, note=EVIL),
        views.render("takes", takes=[{"url": "/x", "label": EVIL, "seed": 1, "is_shown": True}]),
    ):
        tags = [tag for tag, _ in Page(html).tags]
        assert not {"script", "b", "iframe", "svg"} & set(tags), html
        assert "x" not in Page(html).attributes("img", "src")
        assert not any(key.startswith("on") for _, values in Page(html).tags for key in dict(values))


@pytest.mark.parametrize("place", ["secret", "../secret", "characters/../../secret", "{outside}", "characters/link"])
def test_a_script_that_names_a_file_outside_its_project_is_refused_before_the_file_is_read(tmp_path, place):
    project = tmp_path / "project"
    (project / "characters").mkdir(parents=True)
    (tmp_path / "secret").write_text("key")
    (project / "characters" / "link").symlink_to(tmp_path / "secret")
    file = place.format(outside=tmp_path / "secret")
    script = f"title: x\ncharacters: {{Mia: {{file: '{file}'}}}}\npanels: [{{prompt: '[Mia] runs'}}]"
    for folder in (None, project):
        with pytest.raises(UserError, match="names character files, which the studio does not read"):
            parse_script(script, folder)


def test_a_run_that_lacks_a_saved_character_is_refused(tmp_path):
    manifest = Manifest("x", "tiny", "random", {"script": {"character_files": {"Mia": "1f2e"}}}, ())
    with pytest.raises(UserError, match=r"1f2e\.safetensors of a saved character is missing"):
        read_script(manifest, tmp_path)

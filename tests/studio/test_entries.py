"""What is entered in the page and not generated yet: kept in the run folder, and nowhere else."""

import pytest

from storydiffusion.errors import UserError
from storydiffusion.studio import edits
from storydiffusion.studio.entries import FILE, LONGEST_IDEA, Entries, read_entries, write_entries
from storydiffusion.studio.look import Look
from tests.conftest import STORY
from tests.studio.conftest import build_studio, finish

W = "window"
LOOK = Look(seed=5, layout="strip", with_video=False)


def test_a_look_is_kept_until_it_is_generated(studio, tiny_model):
    name = studio.create(STORY)
    own = studio.read(name).look
    studio.enter(name, W, lambda entries: Entries(LOOK, entries.idea))
    studio.edit(name, W, edits.add_panel)
    other = build_studio(studio.root, tiny_model)
    assert other.read(name).look == LOOK != own
    other.close()
    studio.generate(name, W, studio.read(name).look)
    assert finish(studio, name).state == "done"
    project = studio.read(name)
    assert (project.config.seed, project.config.page.layout, project.config.video) == (5, "strip", "off")
    assert (project.look, project.entries) == (LOOK, Entries())
    assert not (project.folder / FILE).exists()
    studio.enter(name, W, lambda entries: Entries(own))
    assert studio.read(name).look == own
    studio.enter(name, W, lambda entries: Entries(LOOK))  # as generated
    assert not (project.folder / FILE).exists()


def test_an_idea_is_kept_as_it_was_written(studio):
    words = "a cat\n  finds “a ball” <b>&amp;</b> 猫 \U0001f600"
    name, _ = studio.write(words, panels=4)
    assert studio.read(name).entries == Entries(idea=words)
    studio.enter(name, W, lambda entries: Entries(entries.look, "another"))
    studio.generate(name, W, LOOK)
    assert finish(studio, name).state == "done"
    assert studio.read(name).entries == Entries(idea="another")


def test_a_look_may_be_entered_while_a_job_runs(studio):
    name = studio.create(STORY)
    studio.generate(name, W, LOOK)
    later = Look(6, "grid", True)
    studio.enter(name, W, lambda entries: Entries(later))
    assert finish(studio, name).state == "done"
    assert (studio.read(name).look, studio.read(name).config.seed) == (later, 5)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [(lambda: Entries(Look(-1, "auto", True)), "seed"),
     (lambda: Entries(Look(0, "spiral", True)), "page.layout=spiral"),
     (lambda: Entries(idea="x" * (LONGEST_IDEA + 1)), "the idea has 200001 characters: write at most 200000"),
     (lambda: Entries(idea="ab\ud800"), "half a character at 3")],
)  # fmt: skip
def test_refused_entries_change_nothing(studio, entries, sentence):
    name = studio.create(STORY)
    studio.enter(name, W, lambda before: Entries(LOOK))
    with pytest.raises(UserError, match=sentence):
        studio.enter(name, W, lambda before: entries())
    assert studio.read(name).entries == Entries(LOOK)
    with pytest.raises(UserError, match="open in another window"):
        studio.enter(name, "other", lambda before: Entries())


def test_a_refused_idea_leaves_no_project(studio):
    with pytest.raises(UserError, match="write at most"):
        studio.write("a cat. " * LONGEST_IDEA, is_text=True)
    assert studio.list_projects() == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"idea": 3}', '{"other": 1}', '{"look": {"seed": 1}}', "\x00", '{"idea": "\\ud800"}',
     '{"look": {"seed": "1", "layout": "auto", "with_video": true}}', '{"look": 5}', "[" * 10**5,
     '{"look": {"seed": -1, "layout": "auto", "with_video": true}}', '{"idea": "%s"}' % ("x" * (LONGEST_IDEA + 1)),
     '{"look": {"seed": 1, "layout": "spiral", "with_video": true}}'],
    ids=range(14),
)  # fmt: skip
def test_a_damaged_file_is_named(studio, content):
    name = studio.create(STORY)
    (studio.root / name / FILE).write_text(content)
    with pytest.raises(UserError, match=rf"{FILE} is damaged \(.*\): remove it$"):
        studio.read(name)


def test_every_idea_is_read_back(tmp_path):
    for idea in ("\x00", "\u2028\r\n\t", '"\\', "é" * LONGEST_IDEA, "\U0001f600" * LONGEST_IDEA):
        write_entries(tmp_path, Entries(idea=idea))
        assert read_entries(tmp_path).idea == idea
    write_entries(tmp_path, Entries())
    assert list(tmp_path.iterdir()) == []

"""An edited story: what is made again, what is kept, and that the result is that of a fresh run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storydiffusion.output.manifest import read_manifest
from tests.conftest import SMALL, run_verb

PANELS = {
    1: ("[Pip] runs on the beach", "One."),
    2: ("[Bo] in the park", "Two."),
    3: ("[Pip] and [Bo] in the park", "Three."),
}
STEPS = "steps=3"


def write(file: Path, *panels: dict, title: str = "Two friends") -> None:
    lines = [f"title: {title}", "characters: {Pip: a red cat, Bo: a blue fox}", "panels:"]
    for panel in panels:
        lines += [f"  - {{{', '.join(f'{key}: {value!r}' for key, value in panel.items())}}}"]
    file.write_text("\n".join(lines))


def panel(number: int, **changes: object) -> dict:
    prompt, caption = PANELS[number]
    return {"prompt": prompt, "caption": caption, **changes}


def contents(run: Path) -> dict[str, bytes]:
    """All results; the manifest differs in time and place."""
    files = [file for file in run.rglob("*") if file.is_file() and file.name != "manifest.json"]
    return {file.relative_to(run).as_posix(): file.read_bytes() for file in files}


def images(run: Path) -> dict[str, bytes]:
    """Panels and page; the report names the run folder."""
    return {file: content for file, content in contents(run).items() if file != "report.html"}


def image(run: Path, number: int) -> np.ndarray:
    return np.asarray(Image.open(run / "panels" / f"{number:03d}.png")).astype(int)


@pytest.fixture
def edit(generate_story, story_file, tmp_path):
    """Generate panels in runs/edited and a fresh run of the same, return the outcome of the former."""
    run, fresh = tmp_path / "edited", tmp_path / "fresh"

    def generate(*panels: dict, settings: tuple[str, ...] = (), **title: str):
        write(story_file, *panels, **title)
        outcome = generate_story("run_dir=edited", STEPS, *settings)
        if outcome.code == 0:
            kept = [each for each in settings if each != "overwrite=true"]
            assert generate_story("run_dir=fresh", STEPS, *kept, "overwrite=true").code == 0
        return outcome

    return generate, run, fresh


def test_captions_and_titles_are_set_anew_without_denoising(edit):
    generate, run, fresh = edit
    generate(panel(1), panel(2), panel(3))
    before = contents(run)
    times = {file: file.stat().st_mtime_ns for file in (run / "panels").iterdir()}
    outcome = generate(panel(1), panel(2, caption="Deux."), panel(3, cut=True), title="Friends")
    assert outcome.code == 0
    assert "denoising" not in outcome.err
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert "Deux." in (run / "report.html").read_text()
    assert images(run) == images(fresh)
    changed = {name for name, content in contents(run).items() if content != before[name]}
    assert changed == {"page.png", "report.html"}
    manifest = read_manifest(run / "manifest.json")
    assert manifest.complete
    assert manifest.title == "Friends"
    assert "already" in generate(panel(1), panel(2, caption="Deux."), panel(3, cut=True), title="Friends").out


def test_layout_and_speech_are_set_anew_without_denoising(edit):
    generate, run, fresh = edit
    panels = panel(1), panel(2), panel(3)
    generate(*panels)
    before = contents(run)
    for settings, speech in ((("page.layout=webtoon", "page.gutter=9"), {}), ((), {"says": "Wait!"})):
        outcome = generate(panel(1), panel(2, **speech), panel(3), settings=settings)
        assert outcome.code == 0
        assert "denoising" not in outcome.err
        assert images(run) == images(fresh)
        assert contents(run)["page.png"] != before["page.png"]
    assert generate(*panels).code == 0
    assert contents(run)["page.png"] == before["page.png"]


def test_where_all_panels_read_each_other_an_edit_is_a_fresh_run_bit_for_bit(edit):
    generate, run, fresh = edit
    generate(panel(1), panel(2), panel(3))
    before = contents(run)
    changed = [panel(1), panel(2, prompt="[Bo] on the beach"), panel(3)]
    refused = generate(*changed)
    assert refused.code == 1
    assert "another story or configuration (prompt of panel 2)" in refused.err
    assert "overwrite=true, which generates all 3 panels" in refused.err
    assert contents(run) == before
    assert generate(*changed, settings=("overwrite=true",)).code == 0
    assert images(run) == images(fresh)
    assert all(contents(run)[name] != before[name] for name in before if name.startswith("panels"))


@pytest.mark.parametrize("settings", [("csa=off",), ("csa.rate=0",), ("csa.anchor_panels=1",)])
def test_only_what_depends_on_a_changed_panel_is_generated(edit, settings):
    generate, run, fresh = edit
    generate(panel(1), panel(2), panel(3), settings=settings)
    before = contents(run)
    changed = [panel(1), panel(2), panel(3, prompt="[Pip] and [Bo] on the beach")]
    refused = generate(*changed, settings=settings)
    assert "overwrite=true, which generates panel 3" in refused.err
    assert contents(run) == before
    times = {name: (run / "panels" / name).stat().st_mtime_ns for name in ("001.png", "002.png")}
    outcome = generate(*changed, settings=(*settings, "overwrite=true"))
    assert "generating panel 3; keeping panels 1 and 2" in outcome.err
    assert f"denoising {1 + ('anchor' in settings[0])} panels" in outcome.err
    assert {name: (run / "panels" / name).stat().st_mtime_ns for name in times} == times
    after = contents(run)
    assert after["panels/003.png"] != before["panels/003.png"]
    assert [after[f"panels/00{n}.png"] for n in (1, 2)] == [contents(fresh)[f"panels/00{n}.png"] for n in (1, 2)]
    assert np.abs(image(run, 3) - image(fresh, 3)).max() <= 1  # a smaller batch rounds otherwise


def test_a_changed_place_makes_the_panels_anew_that_share_it(edit):
    generate, run, fresh = edit
    settings = ("csa.regions=characters+places", "csa.anchor_panels=1")
    generate(panel(1, place="beach"), panel(2), panel(3), settings=settings)
    before = contents(run)
    changed = [panel(1, place="beach"), panel(2), panel(3, place="beach")]
    assert "overwrite=true, which generates panel 3" in generate(*changed, settings=settings).err
    assert generate(*changed, settings=(*settings, "overwrite=true")).code == 0
    assert contents(run)["panels/003.png"] != before["panels/003.png"]
    assert np.abs(image(run, 3) - image(fresh, 3)).max() <= 1  # a smaller batch rounds otherwise


def test_panels_with_seeds_of_their_own_move_without_denoising(edit):
    generate, run, fresh = edit
    seeded = [panel(number, seed=number) for number in PANELS]
    generate(*seeded, settings=("csa=off",))
    assert [each.seed for each in read_manifest(run / "manifest.json").panels] == [1, 2, 3]
    moved = [seeded[2], seeded[0], seeded[1]]
    outcome = generate(*moved, settings=("csa=off",))
    assert outcome.code == 0
    assert "denoising" not in outcome.err
    assert images(run) == images(fresh)
    assert [each.seed for each in read_manifest(run / "manifest.json").panels] == [3, 1, 2]


def test_a_removed_panel_leaves_nothing_behind_and_asks_before(edit):
    generate, run, fresh = edit
    seeded = [panel(number, seed=number) for number in PANELS]
    generate(*seeded, settings=("csa=off",))
    assert (
        "another story or configuration (panel 2 is removed)"
        in generate(seeded[0], seeded[2], settings=("csa=off",)).err
    )
    outcome = generate(seeded[0], seeded[2], settings=("csa=off", "overwrite=true"))
    assert outcome.code == 0
    assert "denoising" not in outcome.err
    assert images(run) == images(fresh)


def test_an_added_panel_keeps_the_others_where_none_are_read(edit):
    generate, run, fresh = edit
    generate(panel(1), panel(3, seed=5), settings=("csa=off",))
    outcome = generate(panel(1), panel(2), panel(3, seed=5), settings=("csa=off", "overwrite=true"))
    assert "generating panel 2; keeping panels 1 and 3" in outcome.err
    assert np.abs(image(run, 2) - image(fresh, 2)).max() <= 1
    assert np.abs(image(run, 3) - image(fresh, 3)).max() <= 1


def test_a_seed_of_its_own_changes_that_panel_alone(generate_story, story_file, tmp_path):
    generate_story("run_dir=a", STEPS, "csa=off")
    write(story_file, panel(1), panel(2, seed=9), panel(3))
    generate_story("run_dir=b", STEPS, "csa=off")
    before, after = (read_manifest(tmp_path / run / "manifest.json").panels for run in ("a", "b"))
    assert [each.seed for each in after] == [before[0].seed, 9, before[2].seed]
    assert [one.sha256 == other.sha256 for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_an_interrupted_edit_resumes_with_the_same_images(edit, generate_story, monkeypatch):
    from storydiffusion.output.run_folder import RunFolder

    generate, run, fresh = edit
    generate(panel(1), panel(2), panel(3), settings=("csa=off",))
    changed = [panel(1), panel(2), panel(3, prompt="[Pip] on the beach")]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "keep_panels", stop)
        assert generate(*changed, settings=("csa=off", "overwrite=true")).code == 130
    assert len(read_manifest(run / "manifest.json").earlier) == 3
    outcome = generate(*changed, settings=("csa=off",))
    assert outcome.code == 0
    assert "generating panel 3; keeping panels 1 and 2" in outcome.err
    assert np.abs(image(run, 3) - image(fresh, 3)).max() <= 1


def test_diff_names_what_changes_and_writes_nothing(edit, story_file, tiny_model, capsys):
    generate, run, _ = edit
    settings = (*SMALL, STEPS, f"story={story_file}", f"model.path={tiny_model}", "run_dir=edited")
    settings = (*settings, "guidance_scale=3", "csa=off")
    generate(panel(1), panel(2), panel(3), settings=("csa=off",))
    before = contents(run)
    assert "contains this story with these settings" in run_verb("diff", settings, capsys).out
    write(story_file, panel(1), panel(2, caption="Deux."), panel(3, prompt="[Pip] and [Bo] runs"), title="Friends")
    outcome = run_verb("diff", settings, capsys)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        'title: "Two friends" → "Friends"',
        'caption of panel 2: "Two." → "Deux."',
        'prompt of panel 3: "[Pip] and [Bo] in the park" → "[Pip] and [Bo] runs"',
        "infer would generate panel 3 and rebuild page, video and report",
    ]
    assert contents(run) == before
    assert "cannot read" in run_verb("diff", (*settings[:3], "run_dir=nowhere"), capsys).err


def test_a_locked_panel_is_not_generated_again(generate_story, story_file, tmp_path):
    assert generate_story("run_dir=run", "csa=off").code == 0
    before = (tmp_path / "run" / "panels" / "001.png").read_bytes()
    text = story_file.read_text().replace("caption: One.", "caption: One., lock: true")
    story_file.write_text(text)
    assert "already" in generate_story("run_dir=run", "csa=off").out
    refused = generate_story("run_dir=run", "csa=off", "seed=3", "overwrite=true")
    assert refused.code == 1
    assert "panel 1 is locked" in refused.err
    assert "panel 1 is locked" in generate_story("run_dir=run", "csa=off", "overwrite=true").err
    assert "panel 1 is locked" in generate_story("run_dir=run", "csa=off", "retake=1").err
    story_file.write_text(text.replace("[Bo] in the park", "[Bo] on the beach"))
    assert generate_story("run_dir=run", "csa=off", "overwrite=true").code == 0  # of panel 2 alone
    assert (tmp_path / "run" / "panels" / "001.png").read_bytes() == before


def test_a_lock_is_true_or_false(generate_story, story_file):
    story_file.write_text(story_file.read_text().replace("caption: One.", "lock: 3"))
    assert "panel 1: lock must be true or false, not '3'" in generate_story().err

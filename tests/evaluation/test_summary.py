"""The table of an evaluation: means, what they are over, and no way for a still clip to win in silence."""

import pytest

from storydiffusion.evaluation.result import load_result, save_result
from storydiffusion.evaluation.summary import (
    CHARACTER,
    CLIPSIM_FRAMES,
    FVD,
    KINDS,
    LPIPS_FRAMES,
    MOTION,
    TEXT_IMAGE,
    Measured,
    remarks_on_motion,
    result_of,
    table,
)


def measured() -> Measured:
    found = Measured()
    for subject, value in (("a 001", 0.2), ("a 002", 0.4)):
        found.add(TEXT_IMAGE, "E", subject, value)
    found.add(CHARACTER, "E", "a", 0.5)
    for subject, value in (("still", 0.0), ("moving", 0.02)):
        found.add(LPIPS_FRAMES, "N", subject, 10 * value)
        found.add(MOTION, "flow", subject, value)
    found.add(FVD, "I", "all clips", 7.0)
    return found


def test_the_table_says_what_a_still_clip_would_have():
    rows = table(measured()).splitlines()[2:]
    assert rows == [
        "| text-image similarity (E) | 0.3000 ± 0.1000 | 2 pictures | higher | – |",
        "| character similarity (E) | 0.5000 | 1 story | higher | – |",
        "| motion (flow) | 0.0100 ± 0.0100 | 2 clips | near the truth's | 0 |",
        "| LPIPS-frames (N) | 0.1000 ± 0.1000 | 2 clips | lower | 0 |",
        "| FVD (I) | 7.0000 | the set | lower | – |",
    ]


def test_every_figure_over_time_that_a_still_clip_wins_says_so_and_stands_below_motion():
    best = {"lower": 0, "higher": 1}
    for kind in KINDS:
        if kind.name.startswith(("LPIPS", "CLIPSIM")):
            assert kind.still == best[kind.better]
            assert KINDS.index(kind) > KINDS.index(MOTION)


def test_clips_that_hardly_move_are_named():
    remarks = " ".join(remarks_on_motion(measured()))
    assert "names a winner" in remarks
    assert "1 of 2 clips hardly move" in remarks
    assert "merit: still." in remarks
    moving = Measured()
    moving.add(MOTION, "flow", "moving", 0.02)
    assert "hardly" not in " ".join(remarks_on_motion(moving))
    assert remarks_on_motion(Measured()) == []


def test_figures_of_two_networks_are_two_figures(tmp_path):
    found = measured()
    found.add(CLIPSIM_FRAMES, "E", "moving", 0.9)
    found.add(CLIPSIM_FRAMES, "another", "still", 1.0)
    save_result(result_of(found, {"x": 1}, ["small"]), tmp_path)
    result = load_result(tmp_path / "result.json")
    assert result.values("CLIPSIM-frames (E)") == {"moving": 0.9}
    assert result.values("CLIPSIM-frames (another)") == {"still": 1}
    assert result.values("motion (flow)") == {"still": 0, "moving": 0.02}
    assert result.figures["motion (flow)"].better == "truth"
    assert result.subjects == ["a 001", "a 002", "a", "still", "moving", "all clips"]
    assert result.figures["character similarity (E)"].values == [None, None, 0.5, None, None, None]
    assert (result.settings, result.remarks) == ({"x": 1}, ["small"])
    assert found.of(TEXT_IMAGE) == {"a 001": 0.2, "a 002": pytest.approx(0.4)}

"""The video of a story with tiny random weights: what stands where, what is kept, what is made again."""

import dataclasses
import weakref

import av
import numpy as np
import pytest
from PIL import Image

from storydiffusion.models.video_model import VideoModel
from storydiffusion.output.film_strip import read_strip
from storydiffusion.pipelines import story_video
from storydiffusion.pipelines.story_video import Scene, Showing, render_video, transition_seed
from storydiffusion.pipelines.transition_sampling import TransitionSampling
from tests.helpers.tiny_video_model import tiny_video_model

SAMPLING = TransitionSampling(frames=4, steps=2, guidance_scale=1.0)
SHOWING = Showing(fps=4, hold=0.5, captions=False)
HELD = 2


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return tiny_video_model()


@pytest.fixture
def scenes(tmp_path) -> list[Scene]:
    rng = np.random.default_rng(0)
    made = []
    for number, prompt in enumerate(["a cat", "a red fox", "a blue hat"]):
        file = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
        made.append(Scene(file, prompt))
    return made


@pytest.fixture
def render(model, scenes, tmp_path):
    def call(scenes=scenes, **changes):
        arguments = {"sampling": SAMPLING, "showing": SHOWING, "seed": 3, "made_by": {"unet": "0"}, **changes}
        render_video(tmp_path / "run" / "video.mp4", scenes, model, **arguments)
        with av.open(str(tmp_path / "run" / "video.mp4")) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]

    return call


@pytest.fixture
def sampled(monkeypatch) -> list[tuple[str, int]]:
    """The prompt and seed of every transition that is sampled."""
    calls, original = [], story_video.sample_clips

    def recording(model, start, end, prompts, seeds, *rest):
        calls.append((prompts[0], seeds[0]))
        return original(model, start, end, prompts, seeds, *rest)

    monkeypatch.setattr(story_video, "sample_clips", recording)
    return calls


def strips(tmp_path):
    return {file.name: file.read_bytes() for file in sorted((tmp_path / "run" / "transitions").iterdir())}


def test_panels_stand_and_transitions_lead_between_them(render, sampled, tmp_path):
    frames = render()
    assert len(frames) == 3 * HELD + 2 * (4 - 2)  # shared frames are not doubled
    assert frames[0].shape == (16, 16, 3)
    assert sampled == [("a red fox", transition_seed(3, 0)), ("a blue hat", transition_seed(3, 1))]
    assert list(strips(tmp_path)) == ["001-002.png", "002-003.png"]
    assert len({transition_seed(seed, number) for seed in range(3) for number in range(3)}) == 9


def test_a_strip_holds_the_frames_between_the_very_panels(render, scenes, tmp_path):
    render()
    file = tmp_path / "run" / "transitions" / "001-002.png"
    with Image.open(file) as strip:
        assert strip.size == (4 * 16, 16)
        pixels = np.asarray(strip)
    assert np.array_equal(pixels[:, :16], np.asarray(Image.open(scenes[0].image)))
    assert np.array_equal(pixels[:, -16:], np.asarray(Image.open(scenes[1].image)))
    assert read_strip(file, 4, "another key") is None


def test_a_cut_has_no_transition(render, scenes, sampled, tmp_path):
    frames = render([scenes[0], dataclasses.replace(scenes[1], cut=True), scenes[2]])
    assert len(frames) == 3 * HELD + 2
    assert [prompt for prompt, _ in sampled] == ["a blue hat"]
    assert list(strips(tmp_path)) == ["002-003.png"]


def test_what_is_done_is_not_made_again(render, sampled, tmp_path):
    render()
    done = strips(tmp_path)
    (tmp_path / "run" / "transitions" / "001-002.png").write_bytes(b"damaged")
    assert len(render(showing=Showing(fps=8, hold=0.125, captions=False))) == 3 * 1 + 2 * (4 - 2)
    assert [prompt for prompt, _ in sampled] == ["a red fox", "a blue hat", "a red fox"]
    assert strips(tmp_path) == done


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"made_by": {"unet": "1"}}, {"sampling": dataclasses.replace(SAMPLING, steps=3)}],
    ids=str,
)
def test_other_settings_make_all_transitions_again(render, sampled, change):
    render()
    render(**change)
    assert len(sampled) == 4


def test_a_negative_prompt_makes_its_own_transition_again_where_guidance_reads_it(render, scenes, sampled, tmp_path):
    guided = dataclasses.replace(SAMPLING, guidance_scale=3.0)
    avoiding = [*scenes[:2], dataclasses.replace(scenes[2], negative_prompt="a hat")]
    render()
    render(avoiding)
    assert len(sampled) == 2
    render(sampling=guided)
    before = strips(tmp_path)
    render(avoiding, sampling=guided)
    assert [prompt for prompt, _ in sampled[2:]] == ["a red fox", "a blue hat", "a blue hat"]
    after = strips(tmp_path)
    assert [before[name] == after[name] for name in before] == [True, False]


def test_another_image_or_prompt_makes_its_own_transitions_again(render, scenes, sampled):
    render()
    Image.new("RGB", (16, 16), "red").save(scenes[2].image)
    render()
    render([*scenes[:2], dataclasses.replace(scenes[2], prompt="a hat")])
    assert [prompt for prompt, _ in sampled[2:]] == ["a blue hat", "a hat"]


def test_an_interrupt_keeps_what_is_done_and_leaves_no_half_video(render, sampled, tmp_path, monkeypatch):
    whole = render()
    done = strips(tmp_path)
    for name in done:
        (tmp_path / "run" / "transitions" / name).unlink()
    (tmp_path / "run" / "video.mp4").unlink()
    recording = story_video.sample_clips

    def interrupted(model, start, end, prompts, *rest):
        if prompts == ["a blue hat"]:
            raise KeyboardInterrupt
        return recording(model, start, end, prompts, *rest)

    monkeypatch.setattr(story_video, "sample_clips", interrupted)
    with pytest.raises(KeyboardInterrupt, match="keeps the finished transitions"):
        render()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["transitions"]
    monkeypatch.setattr(story_video, "sample_clips", recording)
    sampled.clear()
    assert all(np.array_equal(a, b) for a, b in zip(render(), whole, strict=True))
    assert [prompt for prompt, _ in sampled] == ["a blue hat"]
    assert strips(tmp_path) == done


def test_no_more_than_two_images_are_held_however_long_the_story(render, scenes, monkeypatch):
    alive: list[weakref.ref] = []
    most = 0
    original = story_video.read_image

    def counting(file):
        nonlocal most
        picture = np.asarray(original(file)).copy()
        alive.append(weakref.ref(picture))
        most = max(most, sum(ref() is not None for ref in alive))
        return picture

    monkeypatch.setattr(story_video, "read_image", counting)
    render(scenes * 4, sampling=dataclasses.replace(SAMPLING, frames=2, steps=1))
    assert len(alive) == 12
    assert most <= 3

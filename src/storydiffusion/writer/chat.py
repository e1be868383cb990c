"""The chat writer: any language model behind an OpenAI-compatible `POST /v1/chat/completions`.

Each step asks with `response_format` json_schema; a server that refuses it, or whose reply does not fit, is asked once
more with json_object, a reply that still does not fit is sent back once with what is wrong, and then the writer stops.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from storydiffusion.errors import UserError
from storydiffusion.files.json_file import parse_object
from storydiffusion.writer.brief import Brief, Draft, Writer, build_story, register_writer
from storydiffusion.writer.chat_server import ChatServer, RefusedError
from storydiffusion.writer.emotions import Plan, check_shown, plan_schema, read_plan
from storydiffusion.writer.schema import Schema, check

FORMATS = ("json_schema", "json_object", "text")
"""Values of response_format, the strictest first; a server that refuses one gets the next."""

Message = dict[str, str]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """An answer of the server to the request of that checksum; `text` is None where it refused the format."""

    step: str
    request: str
    text: str | None


@register_writer("chat")
class ChatWriter(Writer):
    """Write stories with a language model.

    config: of conf/writer/chat.yaml. kept: replies of an earlier run; a request that it has is not sent again.
    `replies` are those of this run, in order.
    """

    def __init__(self, config: Any, kept: Sequence[Mapping[str, Any]] = ()) -> None:
        self.config = config
        self.replies: list[Reply] = []
        self._kept = {each["request"]: Reply(**each) for each in kept}
        self._server: ChatServer | None = None

    def write(self, brief: Brief) -> Draft:
        plan = self._plan(brief) if brief.emotion else None
        schema = brief.target.reply_schema(brief.panels)

        def read(data: dict[str, Any]) -> Any:
            check(data, schema)
            story = build_story(brief.target.read_reply(data), brief)
            if plan is not None:
                check_shown(plan, [panel.prompt for panel in story.panels])
            return story

        story = self._ask("story", _story_messages(brief, plan, schema), schema, brief.seed, read)
        return Draft(story, plan)

    def kept_replies(self) -> list[dict[str, Any]]:
        return [asdict(reply) for reply in self.replies]

    def _plan(self, brief: Brief) -> Plan:
        assert brief.emotion is not None
        emotion = brief.emotion
        elements = [each for category in brief.target.elements(emotion).values() for each in category]
        schema = plan_schema(emotion, elements)
        messages = _plan_messages(brief, elements, schema)
        return self._ask("plan", messages, schema, brief.seed, lambda data: read_plan(data, emotion, elements))

    def _ask(
        self, step: str, messages: list[Message], schema: Schema, seed: int, read: Callable[[dict[str, Any]], Result]
    ) -> Result:
        """Return what `read` makes of the reply. Raises UserError when it cannot be read after one repair turn."""
        form, is_repaired = 0, False
        while True:
            text, form = self._reply(step, messages, schema, form, seed)
            try:
                return read(_parse(text))
            except UserError as error:
                problem = str(error)
            if form == 0:
                form = 1
            elif not is_repaired:
                is_repaired = True
                correction = f"This is wrong: {problem}. Answer with the corrected JSON object alone."
                messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": correction}]
            else:
                raise UserError(
                    f"the model {self.config.model} wrote no usable {step}, even after one correction ({problem}); "
                    "try another seed, fewer panels or a larger model"
                )

    def _reply(self, step: str, messages: list[Message], schema: Schema, form: int, seed: int) -> tuple[str, int]:
        """Return a reply in the strictest format from number `form` on that the server accepts, and its number."""
        for number in range(form, len(FORMATS)):
            request = {
                "model": self.config.model,
                "messages": messages,
                "temperature": self.config.temperature,
                "seed": seed,
                "response_format": _response_format(FORMATS[number], step, schema),
            }
            reply = self._send(step, request)
            if reply.text is not None:
                return reply.text, number
        raise UserError(
            f"{self.config.base_url} refuses every response_format: {', '.join(FORMATS)}; use another server"
        )

    def _send(self, step: str, request: dict[str, Any]) -> Reply:
        """Return the kept reply to a request, else the server's."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        reply = self._kept.get(digest)
        if reply is None:
            self._server = self._server or ChatServer(self.config)
            try:
                reply = Reply(step, digest, self._server.send(request))
            except RefusedError:
                reply = Reply(step, digest, None)
        self.replies.append(reply)
        return reply


def _response_format(form: str, step: str, schema: Schema) -> dict[str, Any]:
    if form != "json_schema":
        return {"type": form}
    return {"type": form, "json_schema": {"name": step, "strict": True, "schema": schema}}


def _parse(text: str) -> dict[str, Any]:
    """Return the JSON object in a reply, which models like to wrap in a code fence or to think aloud before."""
    if not text.strip():
        raise UserError("the reply is empty: answer with a JSON object")
    answer = text.rpartition("</think>")[2]
    try:
        return parse_object(answer[answer.index("{") : answer.rindex("}") + 1])
    except ValueError as error:
        raise UserError(f"the reply is not a JSON object ({error}): answer with one alone") from None


ROLE = """You write stories for picture books, panel by panel: a beginning, a turn and an end.
Captions are one or two short, concrete, vivid sentences each; they show, surprise and never preach.
Characters keep their names and looks in every panel. Answer with one JSON object that fits the given JSON schema."""


def _plan_messages(brief: Brief, elements: list[str], schema: Schema) -> list[Message]:
    task = f"""Plan a story that makes its reader feel {brief.emotion}.
Choose one to four of these visual elements that go together: {"; ".join(elements)}.
Then name the story's theme in a few words and its event in one or two sentences.
{_source(brief)}"""
    return _messages(task, schema)


def _story_messages(brief: Brief, plan: Plan | None, schema: Schema) -> list[Message]:
    lines = [f"Write a story of {brief.panels} panels.", _source(brief)]
    if plan is not None:
        lines += [
            f"It makes its reader feel {plan.emotion}. Theme: {plan.theme}. Event: {plan.event}",
            f"Its images show these elements one after the other, not all at once: {'; '.join(plan.elements)}.",
        ]
    lines.append(f"Title and captions are in the language {brief.language or 'of the idea or text'}.")
    if brief.target.free:
        lines.append(
            "Prompts and descriptions are English and say only what an image shows. A description fixes a character's "
            "body, hair and clothes in at most 20 words. A prompt names characters only as [Name], never by their "
            "description, and says action, place, light and view in at most 25 words; a panel without a character "
            "begins with [NC]."
        )
    else:
        lines.append(
            "The image model draws only the values in the schema. Write captions that fit the place, the action and "
            "the object of their panel. Give every character looks that tell it apart."
        )
    return _messages("\n".join(lines), schema)


def _source(brief: Brief) -> str:
    if brief.text:
        return f"Retell this text, keeping its sentences where they fit:\n<text>\n{brief.text}\n</text>"
    return f"The idea: {brief.idea}" if brief.idea else "The idea is yours."


def _messages(task: str, schema: Schema) -> list[Message]:
    shown = json.dumps(schema, ensure_ascii=False)
    return [{"role": "system", "content": ROLE}, {"role": "user", "content": f"{task}\n\nJSON schema:\n{shown}"}]

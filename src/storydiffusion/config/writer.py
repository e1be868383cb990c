"""conf/writer/*.yaml and the settings of what to write: an idea, a text or an emotion."""

import dataclasses
from typing import Any, Protocol
from urllib.parse import urlsplit

from storydiffusion.config.loading import check_range, load_choice
from storydiffusion.errors import UserError

MOST_PANELS = 30


@dataclasses.dataclass
class RulesWriterConfig:
    """Plots and sentences of this package."""

    kind: str
    panels: int  # unless the command says otherwise

    def __post_init__(self) -> None:
        check_range("writer.panels", self.panels, 1, MOST_PANELS)


@dataclasses.dataclass
class ChatWriterConfig:
    """A language model behind an OpenAI-compatible server."""

    kind: str
    base_url: str
    model: str
    api_key_env: str  # the environment variable with the key; the key itself is not a setting
    temperature: float
    timeout: float  # seconds of one attempt
    retries: int  # after 429, 5xx or no answer
    panels: int

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(f"writer.base_url={self.base_url} is not the URL of a server: write http://HOST:PORT/v1")
        if url.username or url.password or url.query:
            raise UserError(
                "writer.base_url contains a user, password or query, which files would record: put the key into the "
                f"environment variable {self.api_key_env}"
            )
        check_range("writer.temperature", self.temperature, 0, 2)
        check_range("writer.timeout", self.timeout, 0.1, 3600)
        check_range("writer.retries", self.retries, 0, 10)
        check_range("writer.panels", self.panels, 1, MOST_PANELS)


WriterConfig = RulesWriterConfig | ChatWriterConfig
WRITER_CONFIGS: dict[str, type] = {"rules": RulesWriterConfig, "chat": ChatWriterConfig}


class WritingSettings(Protocol):
    """The settings that `infer` and `write` share."""

    idea: str | None
    text: str | None
    emotion: str | None
    panels: int | None
    language: str | None
    writer: Any


def load_writer_config(composed: Any) -> WriterConfig:
    """Load the writer as the class that its key `kind` names."""
    return load_choice(WRITER_CONFIGS, composed, "writer", by="kind")


def is_to_write(config: WritingSettings) -> bool:
    """Return whether a story is to be written."""
    return any(value is not None for value in (config.idea, config.text, config.emotion))


def check_writing(config: WritingSettings) -> None:
    """Check the settings of a story to write, and load its writer. Raises UserError."""
    if config.idea is not None and config.text is not None:
        raise UserError(f"idea={config.idea!r} and text={config.text} exclude each other: leave out one of them")
    if config.panels is not None:
        check_range("panels", config.panels, 1, MOST_PANELS)
    config.writer = load_writer_config(config.writer)

"""One request to an OpenAI-compatible server, bounded in time and size; every failure is one sentence."""

import os
import time
from collections.abc import Iterator
from typing import Any

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.json_file import parse_object

LARGEST_REPLY = 2**20  # bytes
NO_KEY = "none"
"""sent where the variable of the key is not set; local servers ask for none"""


class RefusedError(Exception):
    """The server refused the request's response_format."""


class ChatServer:
    """The server of conf/writer/chat.yaml, reached through the library `openai`.

    Requests that are answered with 429 or 5xx, or not at all, are repeated `retries` times, as Retry-After asks.
    The key is read from the environment variable `api_key_env` and is never part of an error, a reply or a file.

    Raises:
        UserError: the library is not installed.
    """

    def __init__(self, config: Any) -> None:
        try:
            import openai
        except ImportError:
            raise UserError("writer=chat needs the library openai: pip install '.[writer]' in a checkout") from None
        self.config = config
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or NO_KEY,
            timeout=config.timeout,
            max_retries=config.retries,
        )

    def send(self, request: dict[str, Any]) -> str:
        """Return the text of the reply.

        Raises:
            RefusedError: the server does not support the request's response_format.
            UserError: no server, no access, no answer in time, an error of the server, or no complete reply.
        """
        import openai

        try:
            return self._read_text(self._receive(request))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if request["response_format"]["type"] == "text":
                raise self._error(f"refuses the request ({_reason(error)})", "check writer.model and panels") from None
            raise RefusedError from None
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            mend = f"put the key into the environment variable {self.config.api_key_env}"
            raise self._error("denies access", mend) from None
        except openai.NotFoundError:
            mend = "check writer.model, and that writer.base_url ends in /v1"
            raise self._error(f"knows no model {self.config.model}", mend) from None
        except openai.RateLimitError:
            raise self._error("answers 429, too many requests", "wait, or check the account's quota") from None
        except openai.APIStatusError as error:
            raise self._error(f"answers {error.status_code}", "see the server's log") from None
        except openai.APITimeoutError:
            raise self._too_slow() from None
        except openai.APIConnectionError as error:
            raise self._error(f"cannot be reached ({_reason(error)})", "start the server or check the URL") from None

    def _receive(self, request: dict[str, Any]) -> bytes:
        """Return the body of the answer; it is read piece by piece, since a server may send without end."""
        received = bytearray()
        with self._client.chat.completions.with_streaming_response.create(**request) as response:
            deadline = time.monotonic() + self.config.timeout
            for piece in self._pieces(response):
                received += piece
                if len(received) > LARGEST_REPLY:
                    raise self._error(f"sends more than {LARGEST_REPLY // 1024} KiB", "use another model or server")
                if time.monotonic() > deadline:
                    raise self._too_slow()
        return bytes(received)

    def _pieces(self, response: Any) -> Iterator[bytes]:
        """Yield the body of an answer. Its errors are those of the HTTP library, which is openai's own choice."""
        pieces = response.iter_bytes()
        while True:
            try:
                piece = next(pieces, None)
            except Exception as error:
                if any("Timeout" in kind.__name__ for kind in type(error).__mro__):
                    raise self._too_slow() from None
                raise self._error(f"broke the reply off ({_reason(error)})", "see the server's log") from None
            if piece is None:
                return
            yield piece

    def _read_text(self, body: bytes) -> str:
        """Return the content of the first choice."""
        try:
            choice = parse_object(self._without_key(body.decode()))["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
            if not isinstance(text, str | None):
                raise TypeError("content is not text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._error(f"sends no chat completion ({first_line(error)})", "check writer.base_url") from None
        if reason == "length":
            raise self._error("cut the reply off at its length limit", "raise the server's limit, or lower panels")
        if reason == "content_filter":
            raise self._error("withheld the reply by its content filter", "change the idea")
        return text or ""

    def _too_slow(self) -> UserError:
        return self._error(f"sent no complete reply in time (writer.timeout={self.config.timeout:g} s)", "raise it")

    def _error(self, problem: str, mend: str) -> UserError:
        shown = "".join(char for char in self._without_key(problem) if char.isprintable())
        return UserError(f"the chat server {self.config.base_url} {shown}: {mend}")

    def _without_key(self, text: str) -> str:
        """Return the text without the key, should a server send it back."""
        return text if self._client.api_key == NO_KEY else text.replace(self._client.api_key, "KEY")


def _reason(error: Exception) -> str:
    """Return an error's cause in one short line."""
    return first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)[:200]

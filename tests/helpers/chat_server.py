"""A server of the chat completions protocol on 127.0.0.1 whose answers a test scripts."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the next scripted answer, the last one for all further requests."""

    protocol_version = "HTTP/1.1"
    server: "ChatServer"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(json.loads(body))
        self.server.keys.append(self.headers.get("Authorization", ""))
        number = min(len(self.server.requests), len(self.server.answers)) - 1
        try:
            self.server.answers[number](self)
        except OSError:  # the client hung up
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, answers: tuple[Answer, ...]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.requests: list[Request] = []
        self.keys: list[str] = []
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def formats(self) -> list[str]:
        """The response_format of each request."""
        return [request["response_format"]["type"] for request in self.requests]


@contextmanager
def serve(*answers: Answer) -> Iterator[ChatServer]:
    server = ChatServer(answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler: Handler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"content-type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def completion(text: str | None, finish_reason: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [
        {"index": 0, "message": message, "finish_reason": finish_reason}
    ]}).encode()  # fmt: skip


def says(text: str | None, finish_reason: str = "stop") -> Answer:
    """Answer with a completion of this text."""
    return lambda handler: send(handler, 200, completion(text, finish_reason))


def fails(status: int, message: str = "no", **headers: str) -> Answer:
    """Answer with an error of this status."""
    return lambda handler: send(handler, status, json.dumps({"error": {"message": message}}).encode(), **headers)


def body(data: bytes) -> Answer:
    """Answer 200 with these bytes."""
    return lambda handler: send(handler, 200, data)


def silent(handler: Handler) -> None:
    """Answer nothing until the server stops."""
    handler.server.stopped.wait(30)
    handler.close_connection = True


def breaks_off(handler: Handler) -> None:
    """Promise more bytes than are sent."""
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def endless(handler: Handler, pause: float = 0.0) -> None:
    """Send a reply without end: as fast as it goes, or with a pause in seconds after each byte."""
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("connection", "close")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"content": "')
    while not handler.server.stopped.is_set():
        handler.wfile.write(b"a" if pause else b"a" * 2**16)
        time.sleep(pause)


def trickles(handler: Handler) -> None:
    """Send a reply without end, slowly."""
    endless(handler, pause=0.05)

"""A local HTTP server of shards that stalls, cuts off and answers 503, as object storage does."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STALL, CUT, BUSY = "stall", "cut", "busy"
SECONDS = 30  # of a stall; the reader gives up earlier


class ShardServer(ThreadingHTTPServer):
    """Serves the files of `folder`; the next answers for a name fail as `faults[name]` says, then it is whole."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str]] = []  # name and how it was answered
        self.stop = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: ShardServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        self.server.requests.append((name, fault))
        file = self.server.folder / name
        if fault == BUSY or not file.exists():
            self.send_error(503 if fault == BUSY else 404)
            return
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault else data)
        if fault == STALL:
            self.wfile.flush()
            until = time.monotonic() + SECONDS
            while time.monotonic() < until and not self.server.stop.wait(0.1):
                pass
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep standard error free of requests."""


@contextmanager
def serve_shards(folder: Path) -> Iterator[ShardServer]:
    server = ShardServer(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()

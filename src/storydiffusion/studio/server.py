"""Serve the studio on localhost only, until the process is interrupted."""

import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from storydiffusion.errors import UserError
from storydiffusion.studio.files import FILE_POLICY, MEDIA_TYPES, POLICY, find_file
from storydiffusion.studio.studio import Studio

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.responses import Response

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
LARGEST_UPLOAD = "1mb"
SECONDS_TO_CLOSE = 3  # for open connections of pages

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class Headers:
    """ASGI middleware: adds headers of security to every response that has none of its own."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                added = {b"content-security-policy": POLICY, b"x-content-type-options": "nosniff"}
                added |= {b"referrer-policy": "no-referrer"}
                new = [(name, value.encode()) for name, value in added.items() if name not in names]
                message = {**message, "headers": [*message["headers"], *new]}
            await send(message)

        await self.app(scope, receive, send_with_headers)


class OwnPages:
    """ASGI middleware: refuses what pages of other sites send, such as files, which browsers let them send unasked."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        from starlette.responses import PlainTextResponse

        origin = dict(scope.get("headers", ())).get(b"origin")
        answer = self.app if origin is None or is_own(origin.decode("latin-1")) else PlainTextResponse("forbidden", 403)
        await answer(scope, receive, send)


def is_own(origin: str) -> bool:
    """Return whether the value of a header Origin is of this machine."""
    try:
        return urlsplit(origin).hostname in HOSTS
    except ValueError:
        return False


def build_app(studio: Studio) -> "FastAPI":
    """Return the application: Gradio's page and API, and the files of projects."""
    import gradio
    from fastapi import FastAPI, HTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import FileResponse, Response

    from storydiffusion.studio.page import HEAD, build_page, build_theme, read_css

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Headers)
    app.add_middleware(OwnPages)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))  # no other site's name leads here

    @app.get("/projects/{name}/{file:path}")
    def get_file(name: str, file: str) -> "Response":
        try:
            path = find_file(studio.root, name, file)
        except UserError as error:
            raise HTTPException(404, str(error)) from error
        headers = {"content-security-policy": FILE_POLICY, "cache-control": "no-cache"}
        is_export = file.startswith("exports/")
        return FileResponse(
            path,
            media_type=MEDIA_TYPES[path.suffix],
            headers=headers,
            filename=f"{name}-{path.name}" if is_export else None,
        )

    @app.post("/windows/{window}/release")
    def release(window: str) -> "Response":
        studio.windows.release(window)
        return Response(status_code=204)

    return gradio.mount_gradio_app(
        app,
        build_page(studio),
        path="/",
        server_name=HOST,
        show_error=True,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        footer_links=["api"],
        theme=build_theme(),
        css=read_css(),
        head=HEAD,
    )


def serve(studio: Studio, port: int) -> None:
    """Serve until interrupted; uploads lie in a folder of their own, which is removed at the end.

    Raises:
        UserError: a port that is taken.
    """
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="storydiffusion-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # read whenever a file arrives
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        listener = _listen(port)
        settings = uvicorn.Config(
            build_app(studio), log_level="warning", timeout_graceful_shutdown=SECONDS_TO_CLOSE, access_log=False
        )
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        print(f"studio: {address} (projects in {studio.root}); stop it with Ctrl-C", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: uvicorn raises it again
        studio.preload()
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        finally:
            studio.close()


def _listen(port: int) -> Any:
    """Return a socket that listens on localhost only; port 0 takes a free one. Raises UserError."""
    import socket

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # who connects before the server runs waits
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"port={port} cannot be used ({reason}): choose another, or 0 for a free one") from error
    return listener

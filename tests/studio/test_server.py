"""The running server, by HTTP: uploads, files, headers, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from storydiffusion.studio.files import FILE_POLICY
from tests.conftest import STORY
from tests.studio.conftest import SECONDS, Server, run_server

LARGEST = 2**20  # bytes of an upload
NAMES = ("../../x", "..\\..\\x", "/etc/x", "../../runs/x/story.yaml", "%2e%2e%2fx", "x\0y.yaml", "..", ".", ".hidden",
         "<img src=x onerror=alert(1)>.yaml", "con", "é" * 200 + ".yaml", "a" * 5000)  # fmt: skip


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    """Asks the server; beside its folder of projects lies a secret."""
    (server.runs.parent / "secret.png").write_bytes(b"classified")
    for file, content in (("story.yaml", STORY), ("page.png", "page"), ("report.html", "<p>report</p>")):
        (server.runs / "x" / file).parent.mkdir(parents=True, exist_ok=True)
        (server.runs / "x" / file).write_text(content)
    with httpx.Client(base_url=server.address, timeout=SECONDS) as opened:
        yield opened


def upload(client: httpx.Client, name: str, data: bytes, **headers: str) -> httpx.Response:
    return client.post("gradio_api/upload", files={"files": (name, data)}, headers=headers)


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_leads_an_upload_nowhere(client, server, name):
    before = list_files(server.runs.parent)
    answer = upload(client, name, b"title: x")
    assert answer.status_code in (200, 400, 413)
    added = {Path(file) for file in set(list_files(server.runs.parent)) - set(before)}
    (uploads,) = server.temporary.glob("storydiffusion-*")
    assert all(file.resolve().is_relative_to(uploads) for file in added)
    if answer.status_code == 200:
        (file,) = answer.json()
        assert Path(file).resolve().is_relative_to(uploads)
        assert Path(file).read_bytes() == b"title: x"
    kept = list_files(server.runs.parent)
    assert all(kept[file] == content for file, content in before.items())


@pytest.mark.parametrize("size", [LARGEST + 1, 8 * LARGEST])
def test_a_file_over_the_limit_is_refused_and_not_kept(client, server, size):
    before = list_files(server.temporary)
    answer = upload(client, "story.yaml", b"x" * size)
    assert answer.status_code == 413
    assert "exceeded maximum allowed size of 1048576 bytes" in answer.text
    assert list_files(server.temporary) == before
    assert upload(client, "story.yaml", b"x" * LARGEST).status_code == 200


@pytest.mark.parametrize("name", ["evil.html", "evil.svg", "evil.js", "evil.xml"])
def test_an_upload_comes_back_as_a_download_alone(client, name):
    (file,) = upload(client, name, b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>").json()
    answer = client.get(f"gradio_api/file={file}")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "target",
    ["/projects/../secret.png", "/projects/%2e%2e/secret.png", "/projects/x/..%2f..%2fsecret.png",
     "/projects/x/../../secret.png", "/projects/x/%2fetc%2fhostname", "/projects/x/story.yaml",
     "/projects/x/panels/..%2fstory.yaml", "/gradio_api/file={root}/secret.png", "/gradio_api/file=secret.png",
     "/gradio_api/file={root}/runs/x/story.yaml", "/gradio_api/file={root}/runs/x/page.png",
     "/gradio_api/file={upload}/../../../../secret.png", "/gradio_api/file={upload}/..%2f..%2f..%2f..%2fsecret.png",
     "/gradio_api/file=/etc/hostname", "/gradio_api/file=//etc/hostname", "/gradio_api/file=file:///etc/hostname",
     "/gradio_api/file={address}projects/x/page.png", "/gradio_api/proxy={address}projects/x/page.png",
     "/static/../../../secret.png", "/assets/..%2f..%2f..%2fsecret.png", "/docs"],
)  # fmt: skip
def test_nothing_outside_the_results_of_projects_is_served(client, server, target):
    (file,) = upload(client, "story.yaml", b"title: x").json()
    address = target.format(root=server.runs.parent, upload=file, address=server.address)
    answer = client.get("/", extensions={"target": address.encode()})  # as it is: httpx would resolve the dots
    assert answer.status_code in (400, 403, 404), answer.text
    assert b"classified" not in answer.content
    assert "Two friends" not in answer.text


def read_policy(answer: httpx.Response) -> dict[str, list[str]]:
    """Return the directives of an answer's only content security policy."""
    (policy,) = answer.headers.get_list("content-security-policy")
    return {name: sources for name, *sources in (part.split() for part in policy.split(";"))}


def test_the_page_fetches_and_sends_nothing_elsewhere(client):
    answer = client.get("/")
    policy = read_policy(answer)
    assert policy["default-src"] == policy["connect-src"] == policy["form-action"] == ["'self'"]
    assert policy["frame-ancestors"] == policy["object-src"] == policy["frame-src"] == ["'none'"]
    own = {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
    assert {source for sources in policy.values() for source in sources} <= own
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize("file", ["page.png", "report.html"])
def test_files_of_projects_are_sandboxed(client, file):
    answer = client.get(f"projects/x/{file}")
    assert answer.status_code == 200
    assert answer.headers.get_list("content-security-policy") == [FILE_POLICY]
    assert read_policy(answer) == {"sandbox": [], "frame-ancestors": ["'none'"]}
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_errors_have_the_policy_too(client):
    assert "frame-ancestors" in read_policy(client.get("projects/x/story.yaml"))


def test_other_sites_are_refused(client):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1.evil.example",
        "http://[",
        "http://evil@127.0.0.1.x",
    ):
        assert upload(client, "story.yaml", b"title: x", Origin=origin).status_code == 403, origin
    for origin in (str(client.base_url).rstrip("/"), "http://localhost:9000"):  # a forwarded port is another one
        assert upload(client, "story.yaml", b"title: x", Origin=origin).status_code == 200


def test_a_terminated_studio_leaves_no_uploads(tmp_path, tiny_model):
    with run_server(tmp_path, tiny_model) as (server, process):
        with httpx.Client(base_url=server.address, timeout=SECONDS) as client:
            (file,) = upload(client, "story.yaml", b"title: x").json()
        assert Path(file).exists()
        process.terminate()
        assert process.wait(SECONDS) == 130  # as after Ctrl-C
    assert not list(server.temporary.glob("storydiffusion-*"))

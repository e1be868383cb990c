"""Time the studio: seconds from *Generate* to the first image on the page, for its first story and for later ones.

    python benchmarks/studio.py                        # the example story on the miniature
    python benchmarks/studio.py --stories 4 csa.rate=0.7

A server of its own is started on a free port, and asked by its API as fast as a person would look: an image counts when
its address answers. Takes of a panel are timed beside the last story, with their share of the time of its images.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from gradio_client import Client

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "stories" / "mia.yaml"
LIMIT = 600  # seconds, after which a wait is given up
PAUSE = 0.05


def wait_for(condition: Callable[[], bool], what: str) -> float:
    """Return the seconds until `condition()` holds."""
    begin = time.perf_counter()
    while not condition():
        if time.perf_counter() - begin > LIMIT:
            sys.exit(f"{what} did not come within {LIMIT} s")
        time.sleep(PAUSE)
    return time.perf_counter() - begin


def start(folder: Path, settings: list[str]) -> tuple[subprocess.Popen, str]:
    """Start a studio; return its process and address."""
    command = [sys.executable, "-m", "storydiffusion", "studio", f"folder={folder}", "port=0", *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            return process, found.group()
    sys.exit("the studio did not start")


def exists(address: str) -> bool:
    try:
        return urllib.request.urlopen(address).status == 200
    except urllib.error.HTTPError:
        return False


def finish(studio: Client, name: str) -> None:
    """Wait for a project's job, which must succeed."""
    wait_for(lambda: studio.predict(name, api_name="/status")["state"] not in ("waiting", "running"), name)
    if (status := studio.predict(name, api_name="/status"))["state"] != "done":
        sys.exit(status["message"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=3)
    parser.add_argument("--takes", type=int, nargs="+", default=[1, 1, 6])
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, address = start(Path(folder), args.settings)
        try:
            studio = Client(address, verbose=False)
            print("| what | s | each, of the story's images |\n|---|---|---|")
            name = ""
            for number in range(1, args.stories + 1):
                name = studio.predict(EXAMPLE.read_text(), api_name="/create")
                studio.predict(name, number, "", False, api_name="/generate")
                image = f"{address}projects/{name}/panels/001.png"
                print(f"| story {number}: first image | {wait_for(lambda image=image: exists(image), image):.1f} | |")
                finish(studio, name)
            images = json.loads((Path(folder) / name / "manifest.json").read_text())["seconds"]["panels"]
            print(f"| images of the last story | {images:.1f} | |")
            made = 0
            for count in args.takes:
                begin, made = time.perf_counter(), made + count
                studio.predict(name, 2, count, api_name="/retake")
                last = Path(folder) / name / "takes" / f"002-{made:03d}.png"
                wait_for(last.exists, str(last))  # no request, which the same cores would answer
                seconds = time.perf_counter() - begin
                finish(studio, name)
                print(f"| takes of a panel: {count} | {seconds:.1f} | {seconds / count / images:.2f} |")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()

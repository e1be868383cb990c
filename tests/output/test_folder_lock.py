"""One command at a time in a run folder."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from storydiffusion.errors import UserError
from storydiffusion.output.folder_lock import LOCK, RANKS, is_first_process, own_folder
from tests.helpers.folder_owner import Owner

FORK = """
import os, sys, time
from storydiffusion.output.folder_lock import own_folder
with own_folder(sys.argv[1]):
    if not (child := os.fork()):
        time.sleep(600)
    print(child, flush=True)
    sys.stdin.readline()
"""
RACE = """
import os, sys
from pathlib import Path
from storydiffusion.output.folder_lock import own_folder
folder, count = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(30):
    with own_folder(folder, wait=True):
        marker = os.open(count.with_suffix(".inside"), os.O_CREAT | os.O_EXCL)  # fails where two are inside
        count.write_text(str(int(count.read_text()) + 1))
        os.close(marker)
        count.with_suffix(".inside").unlink()
"""

CHURN = """
import os, sys
from contextlib import suppress
while True:
    with suppress(OSError):
        os.mkdir(sys.argv[1])
    with suppress(OSError):
        os.rmdir(sys.argv[1])
"""


@pytest.fixture
def owner(tmp_path) -> Iterator[Owner]:
    other = Owner(tmp_path / "run")
    yield other
    other.kill()


def test_a_second_process_is_refused_and_the_owner_is_named(tmp_path, owner):
    with pytest.raises(UserError) as refusal, own_folder(tmp_path / "run"):
        pytest.fail("two processes own the folder")
    sentence = str(refusal.value)
    assert f"{tmp_path / 'run'} is in use by process {owner.process.pid} on {os.uname().nodename} since " in sentence
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: wait until it ends, or choose another folder$", sentence)


def test_the_folder_is_free_once_its_owner_ends_however_it_ends(tmp_path, owner):
    owner.release()
    assert not (tmp_path / "run").exists()  # it was new and stayed empty
    for number in (signal.SIGKILL, signal.SIGTERM):
        killed = Owner(tmp_path / "run")
        killed.process.send_signal(number)
        killed.process.communicate()
        with own_folder(tmp_path / "run"):
            (tmp_path / "run" / "result").touch()
        assert os.listdir(tmp_path / "run") == ["result"]


def test_children_that_outlive_their_owner_do_not_keep_the_folder(tmp_path):
    owner = Owner(tmp_path / "run", FORK)
    try:
        owner.kill()
        with own_folder(tmp_path / "run"):
            pass
    finally:
        os.kill(int(owner.line), signal.SIGKILL)


def test_an_exception_frees_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), own_folder(tmp_path):
        _ = 1 / 0
    assert os.listdir(tmp_path) == []
    Owner(tmp_path).release()


def test_waiting_ends_with_the_owner(tmp_path, owner, capfd):
    second = subprocess.Popen(
        [sys.executable, "-c", RACE, tmp_path / "run", tmp_path / "count"], stderr=subprocess.PIPE
    )
    (tmp_path / "count").write_text("0")
    assert second.stderr is not None
    assert f"waiting until process {owner.process.pid} on " in second.stderr.readline().decode()
    owner.release()
    _, errors = second.communicate()
    assert (second.returncode, errors) == (0, b"")
    assert (tmp_path / "count").read_text() == "30"


def test_no_two_of_four_processes_ever_own_a_folder_that_each_removes(tmp_path):
    (tmp_path / "count").write_text("0")
    race = [sys.executable, "-c", RACE, tmp_path / "run", tmp_path / "count"]
    racers = [subprocess.Popen(race, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [racer.wait() for racer in racers] == [0] * 4
    assert (tmp_path / "count").read_text() == "120"


def test_a_folder_that_others_create_and_remove_at_any_moment_is_owned(tmp_path):
    others = subprocess.Popen([sys.executable, "-c", CHURN, tmp_path / "run"])
    try:
        for _ in range(10):
            with own_folder(tmp_path / "run"):
                assert (tmp_path / "run" / LOCK).is_file()
    finally:
        others.kill()
        others.wait()


def test_a_lock_of_unknown_content_still_holds(tmp_path, owner):
    for content in ("", "{", "[" * 10_000):
        (tmp_path / "run" / LOCK).write_text(content)
        with pytest.raises(UserError, match="is in use by another process"), own_folder(tmp_path / "run"):
            pytest.fail("two processes own the folder")


def test_a_place_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot lock .*/file/\.lock: file exists; choose"),
        own_folder(tmp_path / "file"),
    ):
        pass


@pytest.mark.parametrize("name", RANKS)
def test_one_process_of_a_training_owns_its_folder(monkeypatch, name):
    for each in RANKS:
        monkeypatch.delenv(each, raising=False)
    assert is_first_process()
    monkeypatch.setenv(name, "0")
    assert is_first_process()
    monkeypatch.setenv(name, "1")
    assert not is_first_process()

"""The queue of jobs and the claims of windows."""

import threading

import pytest

from storydiffusion.errors import UserError
from storydiffusion.studio.jobs import Jobs
from storydiffusion.studio.windows import SECONDS, SECONDS_TO_RELOAD, Windows
from tests.studio.conftest import finish


class Holder:
    """Has jobs, as a studio has."""

    def __init__(self) -> None:
        self.jobs = Jobs()


@pytest.fixture
def holder():
    holder = Holder()
    yield holder
    holder.jobs.close()


def test_jobs_run_one_after_the_other(holder):
    order, go = [], threading.Event()
    holder.jobs.start("a", "first", lambda watch: (go.wait(), order.append("a"), "made a")[-1])
    state = holder.jobs.start("b", "second", lambda watch: (order.append("b"), "made b")[-1])
    assert (state.state, holder.jobs.count_before(state.number)) == ("waiting", 1)
    with pytest.raises(UserError, match=r"a is busy \(first\)"):
        holder.jobs.start("a", "third", lambda watch: "")
    go.set()
    assert finish(holder, "b").message == "made b"
    assert (order, finish(holder, "a").message) == (["a", "b"], "made a")
    holder.jobs.start("a", "third", lambda watch: "again")
    assert finish(holder, "a").message == "again"


def test_steps_are_seen_and_a_cancelled_job_stops_at_the_next(holder):
    reached, go = threading.Event(), threading.Event()

    def work(watch) -> str:
        watch("panels", 1, 9)
        reached.set()
        go.wait()
        watch("panels", 2, 9)
        raise AssertionError("not reached")

    holder.jobs.start("a", "generating", work)
    reached.wait()
    state = holder.jobs.get("a")
    assert (state.state, state.stage, state.step, state.steps) == ("running", "panels", 1, 9)
    holder.jobs.cancel("a")
    go.set()
    assert finish(holder, "a").state == "cancelled"


def test_a_waiting_job_is_cancelled_before_it_begins(holder):
    go, begun = threading.Event(), []
    holder.jobs.start("a", "first", lambda watch: (go.wait(), "")[-1])
    holder.jobs.start("b", "second", lambda watch: (begun.append(1), "")[-1])
    holder.jobs.cancel("b")
    go.set()
    assert (finish(holder, "b").state, begun) == ("cancelled", [])


def test_errors_end_a_job_and_not_the_queue(holder, capsys):
    def refuse(watch) -> str:
        raise UserError("no such model: choose another")

    holder.jobs.start("a", "generating", refuse)
    assert finish(holder, "a").message == "no such model: choose another"
    holder.jobs.start("a", "generating", lambda watch: str(1 // 0))
    state = finish(holder, "a")
    assert state.state == "failed"
    assert "ZeroDivisionError" in state.message
    assert "ZeroDivisionError" in capsys.readouterr().err
    holder.jobs.start("a", "generating", lambda watch: "fine")
    assert finish(holder, "a").message == "fine"


def test_a_claim_ends_with_its_window():
    now = [0.0]
    windows = Windows(lambda: now[0])
    windows.claim("mia", "one")
    with pytest.raises(UserError, match="mia is open in another window"):
        windows.claim("mia", "two")
    now[0] = SECONDS - 1
    windows.claim("mia", "one")  # renewed
    now[0] = 2 * SECONDS - 2
    with pytest.raises(UserError):
        windows.claim("mia", "two")
    now[0] = 2 * SECONDS
    windows.claim("mia", "two")
    with pytest.raises(UserError):
        windows.claim("mia", "one")
    windows.claim("bo", "two")  # a window has one project
    windows.claim("mia", "one")
    windows.release("one")
    windows.claim("mia", "one")  # its page was loaded again
    windows.release("one")
    with pytest.raises(UserError):
        windows.claim("mia", "three")
    now[0] += SECONDS_TO_RELOAD
    windows.claim("mia", "three")
    with pytest.raises(UserError, match="still loading"):
        windows.claim("mia", "")

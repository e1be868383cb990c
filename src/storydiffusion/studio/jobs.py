"""Work that takes long, one job after the other in a thread of its own: it continues without the page that began it."""

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from storydiffusion.errors import UserError
from storydiffusion.generation.engine import Watch


@dataclass(frozen=True)
class JobState:
    """How a project's job stands.

    Attributes:
        number: counts the jobs of the studio, from 1.
        state: waiting, running, done, failed or cancelled.
        stage: what it does: panels, takes, video, …; '' before it has begun.
        step, steps: of the stage; 0 while unknown.
        message: what to say of it; the error of a failed job.
    """

    number: int
    what: str
    state: str
    stage: str = ""
    step: int = 0
    steps: int = 0
    message: str = ""

    @property
    def is_over(self) -> bool:
        return self.state not in ("waiting", "running")


Work = Callable[[Watch], str]
"""work(watch) → what to say when it is done"""


class Jobs:
    """A queue of jobs, at most one for each project.

    A job that raises UserError or KeyboardInterrupt, such as a cancelled one, ends with its message; so does one with a
    bug, whose traceback is printed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, JobState] = {}  # the latest job of each project
        self._cancelled: set[int] = set()
        self._waiting: queue.Queue[tuple[str, int, Work] | None] = queue.Queue()
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="studio-jobs", daemon=True)
        self._thread.start()

    def start(self, project: str, what: str, work: Work) -> JobState:
        """Add a job. Raises UserError while the project has one that is not over."""
        with self._lock:
            current = self._states.get(project)
            if current is not None and not current.is_over:
                raise UserError(f"{project} is busy ({current.what}): wait until it is done, or cancel it")
            self._count += 1
            self._states[project] = state = JobState(self._count, what, "waiting")
        self._waiting.put((project, state.number, work))
        return state

    def get(self, project: str) -> JobState | None:
        """Return the latest job of a project."""
        with self._lock:
            return self._states.get(project)

    def count_before(self, number: int) -> int:
        """Return how many jobs run or wait before job `number`."""
        with self._lock:
            return sum(not each.is_over and each.number < number for each in self._states.values())

    def cancel(self, project: str) -> None:
        """Stop the project's job at its next step; what it has made is kept."""
        with self._lock:
            state = self._states.get(project)
            if state is not None and not state.is_over:
                self._cancelled.add(state.number)

    def close(self) -> None:
        """Cancel every job, and wait until the running one has stopped."""
        with self._lock:
            self._cancelled |= {each.number for each in self._states.values() if not each.is_over}
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            project, number, work = job

            def watch(stage: str, step: int, steps: int, project: str = project, number: int = number) -> None:
                self._change(project, stage=stage, step=step, steps=steps)
                if number in self._cancelled:
                    raise KeyboardInterrupt("cancelled: generate resumes from here")

            self._change(project, state="running")
            try:
                if number in self._cancelled:
                    raise KeyboardInterrupt("cancelled before it began")
                self._change(project, state="done", message=work(watch))
            except KeyboardInterrupt as interrupt:
                self._change(project, state="cancelled", message=str(interrupt))
            except UserError as error:
                self._change(project, state="failed", message=str(error))
            except Exception as error:
                traceback.print_exc()
                self._change(project, state="failed", message=f"a fault of the studio ({error!r}): see its terminal")

    def _change(self, project: str, **values: object) -> None:
        with self._lock:
            self._states[project] = replace(self._states[project], **values)  # type: ignore[arg-type]

"""Preemption: on a signal all processes save the same step and exit; a Slurm job is requeued."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

from storydiffusion.errors import UserError
from storydiffusion.training.callbacks.step_agreement import StepAgreement
from storydiffusion.training.process_group import stop_together

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1)
"""If several arrive, the last one in this order counts."""
SIGNAL = "signal"
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes the run


class Preempted(SystemExit):  # an exit, not an error
    """The training received a signal and has saved its last step."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Preemption(L.Callback):
    """Ends the training after the step in which any of its processes receives one of `SIGNALS`.

    SIGUSR1 and SIGUSR2 announce the time limit. SIGTERM comes from scancel, or from a preemption in which Slurm
    requeues the job itself. The handler only records the signal; in each step all processes agree on it and save.
    They exit before the next batch, after the step's log has been written: the first process requeues its Slurm job,
    and an earlier handler (submitit's, which requeues its jobs itself) receives the signal.

    Args:
        save: saves the trainer; called by all processes.
        requeue: whether this callback requeues the job, at SIGUSR1 and SIGUSR2.
        agreement: the callback that exchanges votes.

    Raises:
        Preempted: in all processes.
        UserError: Slurm refuses to requeue the job; the checkpoint is saved.
    """

    def __init__(self, save: Callable[[L.Trainer], None], requeue: bool, agreement: StepAgreement) -> None:
        self.save = save
        self.requeue = requeue
        self.agreement = agreement
        agreement.add(SIGNAL, lambda trainer: self._received)
        self._before: dict[signal.Signals, Any] = {}
        self._received = 0  # 1 + index of the signal in SIGNALS
        self._agreed: signal.Signals | None = None
        self._last_step = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self._received, self._agreed = 0, None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in SIGNALS:  # replaces Lightning's, which broadcasts inside the handler
            signal.signal(number, self._record)
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # gradients are still accumulating
            return
        self._last_step = trainer.global_step
        latest = self.agreement[SIGNAL]
        if latest and self._agreed is None:
            self._agreed = SIGNALS[latest - 1]
            self.save(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._exit_if_agreed(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._exit_if_agreed(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received = max(self._received, 1 + SIGNALS.index(signal.Signals(number)))

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _exit_if_agreed(self, trainer: L.Trainer) -> None:
        if self._agreed is None:
            return
        failure = None
        if trainer.is_global_zero:
            try:
                with _blocked_signals():
                    outcome = self._requeue()
                _print_below_progress_bar(f"{self._agreed.name}: saved step {self._last_step} and stopped; {outcome}")
            except UserError as error:
                failure = str(error)
        if failure := trainer.strategy.broadcast(failure):
            stop_together(trainer, failure)
        before = self._before[self._agreed]
        try:
            if callable(before):
                with _blocked_signals():
                    before(self._agreed, None)
        finally:
            trainer.strategy.barrier()  # srun may kill all processes as soon as one has exited
        raise Preempted

    def _requeue(self) -> str:
        """Requeue the job if that is this callback's task; return in words how the run continues."""
        if self.requeue and self._agreed is not signal.SIGTERM:
            return f"job {requeue_job()} is requeued"
        return "the same command resumes"


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block the signals here and in programs started meanwhile: on requeue Slurm also signals scontrol."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _print_below_progress_bar(sentence: str) -> None:
    print(f"\n{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr, flush=True)


def requeue_job() -> str:
    """Requeue the Slurm job of this process and return its id; raise UserError if Slurm refuses."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")  # the last task of an array has the array's id as its job id
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise UserError(
            f"the checkpoint is saved, but Slurm did not requeue job {job} ({reason}): submit it again"
        ) from error
    return job

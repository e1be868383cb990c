"""What a training does when it is told to stop: all processes save one step, then end; a Slurm job is queued again."""

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
import torch

from storydiffusion.errors import UserError
from storydiffusion.training.process_group import stop_together

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1)
"""of several that came, the last one here counts"""
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command again goes on


class Preempted(SystemExit):  # an exit, not an error
    """The training was told to stop and has saved its last step."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Preemption(L.Callback):
    """Ends the training at the end of the step in which any of its processes gets one of `SIGNALS`.

    SIGUSR1 and SIGUSR2 announce that the time is up, SIGTERM says that somebody has decided: Slurm's scancel, or its
    preemption, which queues the job again by itself. A handler only notes the signal; all processes agree after each
    step, and all save. They leave before the next batch is trained, when the log of the step has been written too:
    the first one has its Slurm job queued again, and a handler that was there before this one (submitit's, which
    queues its jobs again itself) gets the signal.

    Args:
        save: saves the trainer; called by all processes.
        requeue: this callback is the one that has the job queued again, at SIGUSR1 and SIGUSR2.

    Raises:
        Preempted: in all processes.
        UserError: where Slurm refuses to queue the job again; it is saved.
    """

    def __init__(self, save: Callable[[L.Trainer], None], requeue: bool) -> None:
        self.save = save
        self.requeue = requeue
        self._before: dict[signal.Signals, Any] = {}
        self._received = 0  # 1 + index of the signal in SIGNALS
        self._agreed: signal.Signals | None = None
        self._last_step = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self._received, self._agreed = 0, None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in SIGNALS:  # over Lightning's own, which broadcasts inside the handler
            signal.signal(number, self._note)
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # gradients to accumulate still
            return
        self._last_step = trainer.global_step
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        of_all = int(trainer.strategy.reduce(received, reduce_op="max"))
        if of_all and self._agreed is None:
            self._agreed = SIGNALS[of_all - 1]
            self.save(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._leave(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._leave(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = max(self._received, 1 + SIGNALS.index(signal.Signals(number)))

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _leave(self, trainer: L.Trainer) -> None:
        if self._agreed is None:
            return
        failure = None
        if trainer.is_global_zero:
            try:
                with _signals_waiting():
                    outcome = self._requeue()
                _say(f"{self._agreed.name}: stopped after step {self._last_step}, which is saved; {outcome}")
            except UserError as error:
                failure = str(error)
        if failure := trainer.strategy.broadcast(failure):
            stop_together(trainer, failure)
        before = self._before[self._agreed]
        try:
            if callable(before):
                with _signals_waiting():
                    before(self._agreed, None)
        finally:
            trainer.strategy.barrier()  # srun may end all as soon as one has gone
        raise Preempted

    def _requeue(self) -> str:
        """What becomes of the run, in words."""
        if self.requeue and self._agreed is not signal.SIGTERM:
            return f"job {requeue_job()} is queued again"
        return "the same command goes on"


@contextmanager
def _signals_waiting() -> Iterator[None]:
    """Also for programs started meanwhile: Slurm signals all of a job that it is told to queue again, scontrol too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _say(sentence: str) -> None:
    print(f"\n{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr, flush=True)  # below the progress bar


def requeue_job() -> str:
    """Has Slurm queue the job of this process again; returns its name. Raises UserError where Slurm does not."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")  # the last task of an array has the array's own id as its job's
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise UserError(f"all is saved, but job {job} is not queued again, submit it anew: {reason}") from error
    return job

"""Trainings in several processes, as a launcher starts them, without the minutes of loading every library again."""

import functools
import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

SECONDS = 300  # after which a process that hangs is a failure


def run_processes(function: Callable[..., None], world_size: int, *arguments: Any) -> list[int | None]:
    """Calls function(rank, *arguments) in forked processes of one world; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_join, args=(function, rank, port, arguments)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def _join(function: Callable[..., None], rank: int, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # the threads of the parent were not copied
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(rank, *arguments)


def in_child(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a forked process, for torch.compile and fake tensors.

    They let autograd start threads of its own, after which the tests of several processes cannot fork.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        process = multiprocessing.get_context("fork").Process(target=test, args=arguments, kwargs=fixtures)
        process.start()
        process.join(SECONDS)
        assert process.exitcode == 0, "the test failed in its process: see its output"

    return run

"""Sections of gpu.py on the machine: sums over all GPUs, DeepSpeed, checkpoints."""

import importlib.util
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from gpu_context import Context
from torch import nn
from torch.multiprocessing.spawn import spawn


def measure_collectives(context: Context) -> None:
    """Time a sum over all GPUs by NCCL; on a CPU over two processes by gloo."""
    is_gpu = context.device.type == "cuda"
    processes = torch.cuda.device_count() if is_gpu else 2
    count = context.size.reduce_bytes // 4
    with context.case(backend="nccl" if is_gpu else "gloo", processes=processes) as row:
        result = context.folder / "all_reduce.json"
        meeting = context.folder / f"meeting-{os.getpid()}"
        spawn(reduce_in_process, (processes, count, is_gpu, str(meeting), str(result)), processes)
        row |= json.loads(result.read_text())
        result.unlink()


def reduce_in_process(rank: int, processes: int, count: int, is_gpu: bool, meeting: str, result: str) -> None:
    """Take part in the sum; the first process writes what it measured."""
    import torch.distributed as dist

    backend = "nccl" if is_gpu else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=processes)
    device = torch.device("cuda", rank) if is_gpu else torch.device("cpu")
    data = torch.ones(count, device=device)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        dist.all_reduce(data)
        if is_gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    right = bool((data == processes**4).all())
    if rank == 0:
        seconds = min(times[1:])
        found = {"MiB": count * 4 / 2**20, "ms": 1000 * seconds, "GB/s": count * 4 / seconds / 1e9, "right": right}
        Path(result).write_text(json.dumps(found))
    dist.destroy_process_group()


def measure_deepspeed(context: Context) -> None:
    """Take steps under ZeRO-2 in bf16 with DeepSpeed's own engine."""
    with context.case(stage=2) as row:
        if importlib.util.find_spec("deepspeed") is None:
            row["skipped"] = "the package deepspeed is not installed"
            return
        row |= step_deepspeed(context)


def step_deepspeed(context: Context) -> dict[str, Any]:
    is_gpu = context.device.type == "cuda"
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= {} if is_gpu else {"DS_ACCELERATOR": "cpu"}  # read at import
    import deepspeed  # type: ignore[import-not-found]

    width = 2**12 if is_gpu else 2**6
    network = nn.Sequential(*[nn.Linear(width, width) for _ in range(4)])
    settings = {
        "train_micro_batch_size_per_gpu": 16,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
    }
    parameters: Any = network.parameters()  # DeepSpeed declares a module here, and takes parameters
    engine, *_ = deepspeed.initialize(model=network, model_parameters=parameters, config=settings)
    inputs = torch.randn(16, width, device=engine.device, dtype=torch.bfloat16)

    def step() -> None:
        engine.backward(engine(inputs).float().square().mean())
        engine.step()

    return {"parameters": 4 * width * (width + 1), "ms a step": context.milliseconds(step)}


def measure_checkpoint(context: Context) -> None:
    """Write, flush and read a training state; the paper's is about 9 GB."""
    size = context.size.checkpoint_bytes
    with context.case(GiB=size / 2**30) as row:
        if (free := shutil.disk_usage(context.folder).free) < 2 * size:
            row["skipped"] = f"{free / 2**30:.0f} GiB of disk are free"
            return
        state = {f"weight.{number}": torch.zeros(size // 16 // 4) for number in range(16)}
        file = context.folder / "checkpoint.ckpt"
        begin = time.perf_counter()
        with open(file, "wb") as opened:
            torch.save(state, opened)
            opened.flush()
            os.fsync(opened.fileno())
        row["write s"] = time.perf_counter() - begin
        begin = time.perf_counter()
        torch.load(file, weights_only=True)
        row["read s"] = time.perf_counter() - begin
        file.unlink()

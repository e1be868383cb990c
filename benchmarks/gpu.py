"""Measure one machine with a GPU in at most ten minutes, at random weights: a JSON file and a table.

    python benchmarks/gpu.py                              # full size, into runs/gpu
    python benchmarks/gpu.py --only layers stories        # some sections
    python benchmarks/gpu.py --size tiny --device cpu     # whether everything runs, in a minute

A section has a budget of seconds, and all together have `--minutes`; what exceeds them is skipped, and its row says
so. A section that fails is named, the others run, and the exit status is 1. The last table judges the goals.
"""

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_attention import measure_layers
from gpu_context import SIZES, Context, Row
from gpu_images import measure_compile, measure_parity, measure_shares, measure_stories, measure_vae
from gpu_system import measure_checkpoint, measure_collectives, measure_deepspeed
from gpu_training import UTILISATION, measure_training

from storydiffusion.files.atomic import write_atomically


@dataclass(frozen=True)
class Section:
    """One table: what it says, the function that fills it, and the seconds after which it starts no further row."""

    title: str
    measure: Callable[[Context], None]
    seconds: float


SECTIONS: Mapping[str, Section] = {
    "parity": Section("Prediction of the SDXL U-Net with CSA, against float32", measure_parity, 30),
    "layers": Section("One self-attention layer: CSA, its ideal, and a dense mask", measure_layers, 40),
    "stories": Section("One denoising step of SDXL under guidance", measure_stories, 180),
    "shares": Section("Shares of the time of such a step", measure_shares, 40),
    "compile": Section("torch.compile", measure_compile, 60),
    "vae": Section("VAE decoding", measure_vae, 20),
    "training": Section("One step of the paper's training", measure_training, 60),
    "collectives": Section("Sum over all GPUs", measure_collectives, 20),
    "deepspeed": Section("DeepSpeed ZeRO-2", measure_deepspeed, 30),
    "checkpoint": Section("Checkpoint of the training state", measure_checkpoint, 60),
}


@dataclass(frozen=True)
class Goal:
    """A bound on figures of one section: `find` returns those that it holds for."""

    title: str
    section: str
    find: Callable[[Row], Any]
    bound: float
    is_least: bool  # else the bound is the largest that is allowed

    def judge(self, rows: Sequence[Row]) -> Row:
        """Return a row with the worst figure and whether it keeps the bound, None where nothing was measured."""
        figures = [figure for row in rows if (figure := self.find(row)) is not None]
        worst = (min if self.is_least else max)(figures, default=None)
        met = None if worst is None else worst >= self.bound if self.is_least else worst <= self.bound
        return {"goal": self.title, "bound": self.bound, "found": worst, "met": met}


GOALS = (
    Goal("time of CSA / ideal, at most", "layers", lambda row: row.get("ours/ideal"), 1.1, is_least=False),
    Goal(
        "time of a dense mask / CSA at 8 panels, at least", "layers",
        lambda row: row.get("dense/ours") if row.get("panels") == 8 else None, 4.0, is_least=True,
    ),
    Goal(
        "model FLOPs utilisation of training, at least", "training",
        lambda row: row.get(UTILISATION), 0.4, is_least=True,
    ),
)  # fmt: skip


def judge_goals(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the table of the goals, by the sections that ran."""
    rows = [goal.judge(sections.get(goal.section, {}).get("rows", ())) for goal in GOALS]
    return {"title": "Goals", "rows": rows}


def describe_machine(device: torch.device, dtype: str) -> dict[str, Any]:
    """Return what the figures depend on."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {"device": card, "dtype": dtype, "torch": torch.__version__, "cuda": torch.version.cuda}


def run_section(name: str, args: argparse.Namespace, left: float) -> dict[str, Any]:
    """Run one section in its own seconds or those that are `left`; a failure is part of its result."""
    section = SECTIONS[name]
    device, seconds = torch.device(args.device), min(section.seconds, left)
    context = Context(SIZES[args.size], device, getattr(torch, args.dtype), args.out, seconds)
    result: dict[str, Any] = {"title": section.title, "rows": context.rows}
    try:
        section.measure(context)
    except Exception as error:  # one failure must not cost the other sections their minutes
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"
    return result | {"seconds": time.perf_counter() - context.begun}


def format_section(result: Mapping[str, Any]) -> str:
    """Return a section as a Markdown table."""
    lines = [f"## {result['title']}", ""]
    columns = list(dict.fromkeys(name for row in result["rows"] for name in row))
    if columns:
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(format_value(row.get(name)) for name in columns) + " |" for row in result["rows"]]
    lines += [f"\nfailed: {result['error']}"] if "error" in result else []
    lines += [f"\n{result['seconds']:.0f} s"] if "seconds" in result else []
    return "\n".join([*lines, ""])


def format_value(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections, write gpu.json and gpu.md after each, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all sections together")
    args = parser.parse_args(arguments)
    begun = time.perf_counter()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}, but torch finds no GPU: use --device cpu --size tiny")
    args.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(torch.device(args.device), args.dtype)
    sections: dict[str, Row] = {}
    print("# " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n", flush=True)
    for name in args.only:
        sections[name] = run_section(name, args, 60 * args.minutes - (time.perf_counter() - begun))
        print(format_section(sections[name]), flush=True)
        goals = judge_goals(sections)
        report = json.dumps({"machine": machine, "size": args.size, "sections": sections, "goals": goals}, indent=2)
        write_atomically(args.out / "gpu.json", (report + "\n").encode())
        tables = "\n".join(format_section(section) for section in [*sections.values(), goals])
        write_atomically(args.out / "gpu.md", f"{json.dumps(machine)}\n\n{tables}".encode())
    print(format_section(judge_goals(sections)), flush=True)
    return int(any("error" in section for section in sections.values()))


if __name__ == "__main__":
    sys.exit(main())

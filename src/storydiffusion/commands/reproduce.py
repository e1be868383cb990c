"""`storydiffusion reproduce`: measure the claims of RESULTS.md on the miniature and update the document.

Each claim is measured by a sweep of infer.py; `experiments.claims` lists them. Settings: conf/reproduce.yaml.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from storydiffusion.config.command_line import INTERRUPTED, command
from storydiffusion.errors import UserError
from storydiffusion.evaluation.compare import compare_jobs
from storydiffusion.experiments.claims import CLAIMS, Sweep
from storydiffusion.experiments.report import DOCUMENT, update_document
from storydiffusion.output.folder_lock import own_folder

ROOT = Path(__file__).resolve().parents[3]
INFER = ROOT / "infer.py"


@dataclass
class ReproduceConfig:
    """The settings of the command."""

    claims: list[str] | None  # null: all
    most: int | None  # largest number of stories or clips per sweep; null: as storydiffusion.experiments.claims
    runs: str
    out: str
    overrides: list[str]

    def __post_init__(self) -> None:
        known = [claim.name for claim in CLAIMS]
        self.claims = known if self.claims is None else self.claims
        if wrong := [name for name in self.claims if name not in known]:
            raise UserError(f"claims={wrong[0]} is unknown. Choose from {', '.join(known)}")
        if self.most is not None and self.most < 2:
            raise UserError(f"most={self.most} is too few for a standard error. Pass 2 or more")


@command(ReproduceConfig)
def main(config: ReproduceConfig) -> None:
    """Run the sweeps, judge the claims and write everything; see conf/reproduce.yaml."""
    if not INFER.exists():
        raise UserError(f"{INFER} is missing. Run this command in a checkout of the repository")
    with own_folder(config.runs):
        measure_claims(config)


def measure_claims(config: ReproduceConfig) -> None:
    """Run the sweeps of the claims, and judge each claim as soon as its sweep has finished."""
    chosen = [claim for claim in CLAIMS if claim.name in (config.claims or ())]
    problems: list[str] = []
    sweeps = list(dict.fromkeys(claim.sweep for claim in chosen))
    for number, sweep in enumerate(sweeps, 1):
        folder = Path(config.runs) / sweep.name
        print(f"sweep {number} of {len(sweeps)}: {sweep.name}", flush=True)
        finished = run_sweep(sweep, folder, config)
        for claim in (claim for claim in chosen if claim.sweep == sweep):
            try:
                comparison = compare_jobs(folder, claim.baseline)
            except UserError as error:  # the sweep has no result at all
                problems.append(str(error))
                continue
            if comparison.problems or not finished:
                problems += comparison.problems or [f"{sweep.name} failed"]
                continue
            update_document(claim, comparison, folder, Path(config.out), ROOT / DOCUMENT)
    if problems:
        raise UserError(f"the results are incomplete: {'; '.join(problems)}. Run the same command again to resume")


def run_sweep(sweep: Sweep, folder: Path, config: ReproduceConfig) -> bool:
    """Run infer.py on the items of the sweep that are not measured yet, and return whether it succeeded."""
    count = sweep.count if config.most is None else min(sweep.count, config.most)
    overrides = [f"experiment={sweep.experiment}", f"run_dir={folder}", f"benchmark.{sweep.items}={count}"]
    command = [sys.executable, str(INFER), "-m", *overrides, *sweep.overrides, *config.overrides]
    code = subprocess.run(command, check=False).returncode
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code == 0

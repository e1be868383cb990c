"""`storydiffusion reproduce`: measure the claims of RESULTS.md on the miniature and update the document.

Each claim is measured by a sweep of infer.py; `experiments.claims` lists them. Only those are judged that are about the
edition of StoryWorld that the model draws. Settings: conf/reproduce.yaml.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storydiffusion.config.command_line import INTERRUPTED, command, compose_config
from storydiffusion.errors import UserError
from storydiffusion.evaluation.compare import compare_jobs
from storydiffusion.experiments.claims import CLAIMS
from storydiffusion.experiments.judging import Claim, Sweep
from storydiffusion.experiments.report import DOCUMENT, update_document
from storydiffusion.loaders.resolve import find_family
from storydiffusion.loaders.sources import CONFIG_FILES, find_model_folder
from storydiffusion.output.folder_lock import own_folder

ROOT = Path(__file__).resolve().parents[3]
INFER = ROOT / "infer.py"


@dataclass
class ReproduceConfig:
    """The settings of the command."""

    claims: list[str] | None  # null: all of the model's edition
    most: int | None  # largest number of stories or clips per sweep; null: as storydiffusion.experiments.claims
    runs: str
    out: str
    overrides: list[str]

    def __post_init__(self) -> None:
        known = [claim.name for claim in CLAIMS]
        if wrong := [name for name in self.claims or () if name not in known]:
            raise UserError(f"claims={wrong[0]} is unknown. Choose from {', '.join(known)}")
        if self.most is not None and self.most < 2:
            raise UserError(f"most={self.most} is too few for a standard error. Pass 2 or more")


@command(ReproduceConfig)
def main(config: ReproduceConfig) -> None:
    """Run the sweeps, judge the claims and write everything; see conf/reproduce.yaml."""
    from storydiffusion.evaluation.benchmarks.benchmark import find_edition

    if not INFER.exists():
        raise UserError(f"{INFER} is missing. Run this command in a checkout of the repository")
    folder = find_folder(config.overrides)
    edition = find_edition(folder).number
    chosen = choose_claims(config.claims, edition, find_family(folder).denoiser)
    print(f"the model draws StoryWorld's edition {edition}; claims: {', '.join(c.name for c in chosen)}", flush=True)
    with own_folder(config.runs):
        measure_claims(config, chosen, edition)


def find_folder(overrides: Sequence[str]) -> Path:
    """Return the folder of the model that infer.py uses with these overrides. Raises UserError if there is none."""
    from storydiffusion.commands import infer

    of_model = [each for each in overrides if each.lstrip("+").startswith(("model=", "model."))]
    model = compose_config(infer.main, "infer", of_model).model  # others may be of a benchmark, which a sweep chooses
    return find_model_folder(model.path, model.revision, files=CONFIG_FILES)


def choose_claims(names: Sequence[str] | None, edition: int, denoiser: str = "unet") -> list[Claim]:
    """Return the claims of these names, or all about models of that edition and denoiser.

    Raises:
        UserError: a claim about another edition or denoiser.
    """
    chosen = [
        claim for claim in CLAIMS if claim.name in (names or ()) or (names is None and claim.denoiser == denoiser)
    ]
    if strange := [claim for claim in chosen if claim.denoiser != denoiser]:
        raise UserError(
            f"claims={strange[0].name} is about a model with a {strange[0].denoiser}, but this one has a {denoiser}. "
            "Choose another claim, or overrides=[model=NAME,model.path=FOLDER]"
        )
    others = [claim for claim in chosen if edition not in claim.editions]
    if names is not None and others:
        raise UserError(
            f"claims={others[0].name} is about StoryWorld's edition {', '.join(map(str, others[0].editions))}, but the "
            f"model draws edition {edition}. Choose another claim, or overrides=[model.path=FOLDER]"
        )
    return [claim for claim in chosen if claim not in others]


def measure_claims(config: ReproduceConfig, chosen: Sequence[Claim], edition: int) -> None:
    """Run the sweeps of the claims, and judge each claim as soon as its sweep has finished."""
    problems: list[str] = []
    sweeps = list(dict.fromkeys(claim.sweep for claim in chosen))
    for number, sweep in enumerate(sweeps, 1):
        folder = Path(config.runs) / sweep.name
        print(f"sweep {number} of {len(sweeps)}: {sweep.name}", flush=True)
        finished = run_sweep(sweep, folder, config)
        for claim in (claim for claim in chosen if claim.sweep == sweep):
            try:
                comparison = compare_jobs(folder, claim.baseline)
                if comparison.problems or not finished:
                    problems += comparison.problems or [f"{sweep.name} failed"]
                    continue
                update_document(claim, comparison, folder, Path(config.out), ROOT / DOCUMENT, edition)
            except UserError as error:  # the sweep has no result at all, or too few values to judge
                problems.append(str(error))
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

"""Measures the claims of RESULTS.md on the miniature and fills in its tables, plots and judgements.

  python -m storydiffusion.results                        all of it, as `make results` does
  python -m storydiffusion.results claims=[sampler]       one claim, the rest of the document stays
  python -m storydiffusion.results most=4 runs=runs/quick out=runs/quick    a glance: 4 stories or clips of each
  python -m storydiffusion.results overrides=[model.device=cuda]    settings of infer.py for every sweep

Each claim is measured by a sweep of infer.py, into RUNS/SWEEP; storydiffusion.claims names them. What is measured
already is not measured again, so the same command goes on where it was stopped. OUT gets RESULTS.md (from the one of
the checkout), and below results/ for each claim NAME.png and NAME.json. Where NAME.json is there already, the new means
are compared with those in it, and those that lie farther off than two standard errors are named.

A job that failed is named, its claim is not judged, and the exit code is 1; the other claims are measured all the same.
"""

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storydiffusion.config.command_line import INTERRUPTED
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.stories import read_text
from storydiffusion.evaluation.compare import ARROWS, Collected, as_data, gather, plot
from storydiffusion.evaluation.records import RECORDS, json_bytes
from storydiffusion.experiments.claims import CLAIMS, Claim, Sweep, Verdict
from storydiffusion.output.files import write_atomically

ROOT = Path(__file__).resolve().parents[3]
INFER = ROOT / "infer.py"
DOCUMENT, FOLDER, SUMMARY = "RESULTS.md", "results", "summary"
KEYS = re.compile(r"(^|,)[\w.]+=")
"""what stands before values, as in csa.rate=0.5,csa.sampler=uniform"""


@dataclass
class ResultsConfig:
    """The command's settings."""

    claims: list[str] | None = None  # null: all
    most: int | None = None  # stories or clips of a sweep; null: as many as storydiffusion.claims says
    runs: str = "runs/results"
    out: str = "."
    overrides: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = [claim.name for claim in CLAIMS]
        self.claims = known if self.claims is None else self.claims
        if wrong := [name for name in self.claims if name not in known]:
            raise UserError(f"claims={wrong[0]}: choose of {', '.join(known)}")
        if self.most is not None and self.most < 2:
            raise UserError(f"most={self.most}: measure 2 or more, of one no spread can be told")


def results(config: ResultsConfig) -> None:
    """Measures, judges and writes everything; see the head of this file."""
    if not INFER.exists():
        raise UserError(f"{INFER} is missing: run this command in a checkout of the repository")
    chosen = [claim for claim in CLAIMS if claim.name in config.claims]
    out, problems = Path(config.out), []
    sweeps = list(dict.fromkeys(claim.sweep for claim in chosen))
    for number, sweep in enumerate(sweeps, 1):
        folder = Path(config.runs) / sweep.name
        print(f"sweep {number} of {len(sweeps)}: {sweep.name}", flush=True)
        finished = measure(sweep, folder, config)
        for claim in (claim for claim in chosen if claim.sweep == sweep):
            try:
                collected = gather(folder, claim.baseline)
            except UserError as error:  # nothing of it is measured
                problems.append(str(error))
                continue
            faults = [f"{job} {why}" for job, why in {**collected.missing, **collected.other}.items()]
            if faults or not finished:
                problems += faults or [f"{sweep.name} failed"]
                continue
            report(claim, collected, folder, out)
    if problems:
        raise UserError(f"not all is measured: {'; '.join(problems)}: give the same command again")


def measure(sweep: Sweep, folder: Path, config: ResultsConfig) -> bool:
    """Runs infer.py on what of the sweep is not measured yet; whether it ended well."""
    count = sweep.count if config.most is None else min(sweep.count, config.most)
    told = [f"experiment={sweep.experiment}", f"run_dir={folder}", f"benchmark.{sweep.subjects}={count}"]
    told += [*sweep.overrides, *config.overrides]
    code = subprocess.run([sys.executable, str(INFER), "-m", *told], check=False).returncode
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code == 0


def report(claim: Claim, collected: Collected, folder: Path, out: Path) -> None:
    """Writes a claim's plot, numbers and section, and what has become of all claims."""
    from storydiffusion.evaluation.tables import replace_section

    verdict, labels = claim.judge(collected), shown_labels(claim, collected)
    files = out / FOLDER
    numbers = {"verdict": asdict(verdict), "seconds": seconds_of(folder, collected), **as_data(collected)}
    before = files / f"{claim.name}.json"
    if before.exists():
        print(compared_with(json.loads(before.read_text(encoding="utf-8")), numbers, claim, labels), flush=True)
    write_atomically(before, json_bytes(numbers))
    write_atomically(files / f"{claim.name}.png", plot(collected, claim.shown, labels, _swept(collected)))
    document = read_text(out / DOCUMENT if (out / DOCUMENT).exists() else ROOT / DOCUMENT)
    for name, content in ((claim.name, section(claim, collected, verdict)), (SUMMARY, summary(files))):
        document = replace_section(document, name, content)
    write_atomically(out / DOCUMENT, document.encode())
    print(f"{claim.name}: {verdict.status}. {verdict.sentence}", flush=True)


def section(claim: Claim, collected: Collected, verdict: Verdict) -> str:
    """Judgement, table, plot, and how it was measured."""
    remarks = dict.fromkeys(remark for result in collected.results.values() for remark in result.remarks)
    return "\n\n".join(
        [
            f"**{verdict.status[0].upper()}{verdict.status[1:]}.** {verdict.sentence}",
            table(claim, collected).rstrip(),
            f"![{claim.name}]({FOLDER}/{claim.name}.png)",
            " ".join(remarks),
        ]
    )


def table(claim: Claim, collected: Collected) -> str:
    """Figures down, jobs across, and differences to the baseline where they are compared."""
    from storydiffusion.evaluation.tables import markdown_table, p_value

    labels = shown_labels(claim, collected)

    def rows() -> Iterator[list[str]]:
        for name in claim.shown:
            means = [collected.cell(name, job).mean for job in labels]
            arrow = ARROWS[collected.better[name]]
            counts = {mean.count for mean in means if mean}
            title = f"{name} {arrow} (n {', '.join(map(str, sorted(counts)))})"
            yield [title, *("–" if mean is None else f"{mean.mean:.3f} ± {mean.standard_error:.3f}" for mean in means)]
        for name in claim.compared:
            found = [collected.cell(name, job).difference for job in labels]
            yield [
                f"{name}, less {_values(collected.labels[collected.baseline])}",
                *("–" if one is None else f"{one.mean:+.3f} ± {one.standard_error:.3f}" for one in found),
            ]
            yield [f"{name}, p", *("–" if one is None else p_value(one) for one in found)]

    return markdown_table([_swept(collected), *labels.values()], list(rows()))


def summary(files: Path) -> str:
    """What has become of each claim that is measured, and how long that took."""
    from storydiffusion.evaluation.tables import markdown_table

    found = {
        claim: json.loads(file.read_text(encoding="utf-8"))
        for claim in CLAIMS
        if (file := files / f"{claim.name}.json").exists()
    }
    rows = [[claim.name, one["verdict"]["status"]] for claim, one in found.items()]
    seconds = sum({claim.sweep.name: sum(one["seconds"].values()) for claim, one in found.items()}.values())
    time = f"The jobs took {seconds / 60:.0f} minutes in all, loading not counted."
    return f"{markdown_table(['claim', 'judgement'], rows)}\n{time}"


def compared_with(before: Mapping[str, Any], now: Mapping[str, Any], claim: Claim, jobs: Collection[str]) -> str:
    """How many of the means are what they were, within two standard errors of the earlier ones, and which are not."""
    far, count = [], 0
    for name in claim.shown:
        earlier, later = (one["figures"].get(name, {}).get("jobs", {}) for one in (before, now))
        for job in jobs:
            old, new = (measured.get(job, {}).get("mean") for measured in (earlier, later))
            if old and new:
                count += 1
                if abs(new["mean"] - old["mean"]) > 2 * old["standard_error"]:
                    far.append(f"{name} of {job} {old['mean']:.3f} → {new['mean']:.3f}")
    told = f"{claim.name}: {count - len(far)} of {count} means lie within two standard errors of those before"
    return f"{told}; not {'; '.join(far)}" if far else told


def seconds_of(folder: Path, collected: Collected) -> dict[str, float]:
    """How long each job took, without loading."""

    def seconds(job: str) -> float:
        return sum(one["seconds"] for one in json.loads((folder / job / RECORDS).read_text("utf-8"))["records"])

    return {job: round(seconds(job), 1) for job in collected.results}


def shown_labels(claim: Claim, collected: Collected) -> dict[str, str]:
    """Job → the values that it sets, of those jobs that the claim shows."""
    jobs = collected.labels if claim.jobs is None else claim.jobs
    return {job: _values(collected.labels[job]) for job in jobs}


def _values(label: str) -> str:
    return KEYS.sub(" ", label).strip()


def _swept(collected: Collected) -> str:
    """The keys, in the order in which jobs name them."""
    return ", ".join(sorted(collected.keys))

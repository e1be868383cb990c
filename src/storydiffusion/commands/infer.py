"""Generate a story: panels, a comic page, a video and a report in one run folder; or run a benchmark.

An interrupted run resumes where it stopped, with the same pixels; a finished one answers without loading a model.
"""

from storydiffusion.config import InferConfig
from storydiffusion.config.command_line import command
from storydiffusion.generation.story import Outcome, generate_story


@command(InferConfig)
def main(config: InferConfig) -> None:
    """Run the verb: a benchmark, or one story."""
    if config.benchmark is None:
        print("\n".join(describe(config, generate_story(config))))
        return
    from storydiffusion.evaluation.benchmarks.run import run_benchmark

    print(*run_benchmark(config), sep="\n  ")


def describe(config: InferConfig, outcome: Outcome) -> list[str]:
    """Return lines: what was made, and where it is."""
    if outcome.takes:
        lines = [f"take {take.number}: {outcome.folder / take.file}, seed {take.seed}" for take in outcome.takes]
        return [*lines, f"choose one with retake={config.retake} take=N; take=0 is the panel's first image"]
    page, report, panels = (outcome.folder / name for name in ("page.png", "report.html", "panels"))
    if outcome.is_new:
        video = f"no video: {outcome.no_video}" if outcome.video is None else f"video: {outcome.video}"
        lines = [f"generated: {page}, {report} and the images in {panels}", video]
    else:
        lines = [f"{page} already exists; pass overwrite=true to regenerate"]
    return [*lines, *(f"exported: {file}" for file in outcome.exports)]

"""Tells a story in consistent images and a video: python infer.py story=FILE run_dir=DIR [key=value …]; see --help.

With benchmark=stories or benchmark=transitions it measures many instead.
"""

from storydiffusion.config import InferConfig
from storydiffusion.config.command_line import command


@command(InferConfig, "infer")
def main(config: InferConfig) -> None:
    from storydiffusion.commands.infer import run_folder, story, tell
    from storydiffusion.commands.video import why_no_video
    from storydiffusion.evaluation.benchmarks.run import benchmark
    from storydiffusion.loaders.resolve import resolve_model

    if config.benchmark is not None:
        print(*benchmark(config), sep="\n  ")
        return
    script = story(config)
    attention = config.csa.build(config.seed)
    model = resolve_model(config.model)
    run = run_folder(config, model, script)
    if run.is_complete:
        print(f"{run.path / 'page.png'} tells this story already; overwrite=true makes it again")
        return
    tell(config, model, script, attention, run)
    print(f"told: {run.path / 'page.png'}, with {run.path / 'report.html'} and the pictures in {run.path / 'panels'}")
    print(f"video: {run.path / 'video.mp4'}" if run.manifest.video else f"no video: {why_no_video(config, model)}")


if __name__ == "__main__":
    main()

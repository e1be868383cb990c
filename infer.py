"""Tells a story in consistent images and a video: python infer.py story=FILE run_dir=DIR [key=value …]; see --help.

With benchmark=stories or benchmark=transitions it measures many instead.
"""

from storydiffusion import assembly
from storydiffusion.command_line import command
from storydiffusion.config import InferConfig


@command(InferConfig, "infer")
def main(config: InferConfig) -> None:
    if config.benchmark is not None:
        print(*assembly.benchmark(config), sep="\n  ")
        return
    story = assembly.story(config)
    attention = assembly.consistent_attention(config.consistency, config.seed)
    run = assembly.run_folder(config, story)
    if run.is_complete:
        print(f"{run.path / 'page.png'} tells this story already; overwrite=true makes it again")
        return
    assembly.tell(config, story, attention, run)
    print(f"told: {run.path / 'page.png'}, with {run.path / 'report.html'} and the pictures in {run.path / 'panels'}")
    print(f"video: {run.path / 'video.mp4'}" if run.manifest.video else f"no video: {assembly.why_no_video(config)}")


if __name__ == "__main__":
    main()

"""Times stories that share by region against stories that share whole panels: the same model, seeds and steps.

    python benchmarks/regions.py                                  # the miniature
    python benchmarks/regions.py --model FOLDER --size 512        # another model, at 512 × 512

A story has four panels: both characters, each alone, and both again, in two places. Every setting generates it in turn,
and the least time counts, the one that other loads disturbed least. Denoising is timed, from the first call of the
denoiser to the end of the last step: text encoder and VAE cost the same with any setting. Regions should cost at most
1.25 × as much as whole panels; whether they do is printed.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from storydiffusion import ConsistentSelfAttentionConfig, StoryPipeline
from storydiffusion.attention.backbones import find_denoiser
from storydiffusion.story import Character, Panel, Story

STORY = Story(
    "story",
    (Character("Mia", "a girl in a red shirt"), Character("Tom", "a cat")),
    (
        Panel("[Mia] and [Tom] are standing in the park", "", ("Mia", "Tom"), place="park"),
        Panel("[Mia] is waving on the beach", "", ("Mia",), place="beach"),
        Panel("[Tom] is running in the park", "", ("Tom",), place="park"),
        Panel("[Tom] and [Mia] are jumping on the beach", "", ("Tom", "Mia"), place="beach"),
    ),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "no sharing": {"variant": "off"},
    "whole panels": {},
    "regions of characters": {"regions": "characters"},
    "with isolation": {"regions": "characters", "isolate_until": 0.5},
    "with places": {"regions": "characters+places"},
}
REFERENCE, MOST = "whole panels", 1.25


def time_denoising(pipe: StoryPipeline, csa: ConsistentSelfAttentionConfig, settings: Mapping[str, Any]) -> float:
    """Return the seconds from the first call of the denoiser to the end of the last step."""
    clock: list[float] = []

    def tick(*call: Any, **inputs: Any) -> None:
        if pipe.pipe.device.type == "cuda":
            torch.cuda.synchronize()
        clock.append(time.perf_counter())

    denoiser = find_denoiser(pipe.pipe)
    hook = denoiser.register_forward_pre_hook(tick)
    try:
        pipe(STORY, csa=csa, callback_on_step_end=tick, **settings)
    finally:
        hook.remove()
    return clock[-1] - clock[0]


def describe(seconds: Mapping[str, float]) -> list[str]:
    """Return a table of the settings' seconds, and a sentence on each setting with regions: within the bound or not."""
    ratios = {name: each / seconds[REFERENCE] for name, each in seconds.items()}
    rows = [f"| {name} | {each:.2f} | {ratios[name]:.2f} |" for name, each in seconds.items()]
    judged = [
        f"{name}: {ratios[name]:.2f} × {REFERENCE}, {'within' if ratios[name] <= MOST else 'ABOVE'} {MOST} ×"
        for name, chosen in SETTINGS.items()
        if "regions" in chosen
    ]
    return [f"| sharing | seconds of denoising | × {REFERENCE} |", "|---|---|---|", *rows, "", *judged]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package://miniature")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    pipe = StoryPipeline.from_pretrained(args.model, device=args.device)
    size = {} if args.size is None else {"height": args.size, "width": args.size}
    least = dict.fromkeys(SETTINGS, float("inf"))
    for repeat in range(args.repeats + 1):
        for name, chosen in SETTINGS.items():
            csa = ConsistentSelfAttentionConfig(**chosen)
            seconds = time_denoising(pipe, csa, {"num_inference_steps": args.steps, **size})
            if repeat:  # the first round warms up
                least[name] = min(least[name], seconds)
    print(f"{args.model}, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("\n".join(describe(least)))


if __name__ == "__main__":
    main()

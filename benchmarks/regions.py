"""Times stories that share by region against stories that share whole panels: the same model, seeds and steps.

    python benchmarks/regions.py                                  # the miniature
    python benchmarks/regions.py --model FOLDER --size 512        # another model, at 512 × 512

A story has four panels: both characters, each alone, and both again, in two places. Every setting generates it in turn,
and the least time counts, the one that other loads disturbed least.
"""

import argparse
import time
from typing import Any

import torch

from storydiffusion import ConsistentSelfAttentionConfig, StoryPipeline
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
REFERENCE = "whole panels"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package://miniature")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    pipe = StoryPipeline.from_pretrained(args.model, device=args.device)
    size = {} if args.size is None else {"height": args.size, "width": args.size}
    least = dict.fromkeys(SETTINGS, float("inf"))
    for repeat in range(args.repeats + 1):
        for name, chosen in SETTINGS.items():
            clock = time.perf_counter()
            pipe(STORY, csa=ConsistentSelfAttentionConfig(**chosen), num_inference_steps=args.steps, **size)
            if repeat:  # the first round warms up
                least[name] = min(least[name], time.perf_counter() - clock)
    print(f"{args.model}, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"| sharing | seconds | × {REFERENCE} |\n|---|---|---|")
    for name, seconds in least.items():
        print(f"| {name} | {seconds:.2f} | {seconds / least[REFERENCE]:.2f} |")


if __name__ == "__main__":
    main()

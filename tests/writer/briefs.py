"""Briefs and ideas that the tests of writers share."""

import random
from dataclasses import replace

from storydiffusion.writer.brief import Brief
from storydiffusion.writer.targets import FreeTarget, StoryWorldTarget, Target

BRIEF = Brief("a lonely robot finds a friend", "", None, 6, None, 0, StoryWorldTarget(1))
TARGETS: tuple[Target, ...] = (StoryWorldTarget(1), StoryWorldTarget(2), FreeTarget())

HEROES = (
    "a cat",
    "a lonely robot",
    "Mia, a girl with red hair",
    "a brown bear in a blue shirt",
    "a boy",
    "two rabbits",
)
DEEDS = (
    "finds a friend", "loses a ball in the forest", "is afraid of a noise", "does not want to share a gift", "laughs",
    "says goodbye on the beach", "sees the stars for the first time", "reads a book in the park", "has a birthday",
    "waves at a dragon in the snow",
)  # fmt: skip


def brief(**changes) -> Brief:
    return replace(BRIEF, **changes)


def seeded_idea(seed: int) -> str:
    rng = random.Random(seed)
    return f"{rng.choice(HEROES)} {rng.choice(DEEDS)}"

"""What a writer's story could not keep of an idea, one sentence each."""

from collections.abc import Iterator, Mapping
from typing import Any

from storydiffusion.storyworld.captions import with_article
from storydiffusion.writer.brief import Brief
from storydiffusion.writer.idea import Reading
from storydiffusion.writer.languages import LANGUAGES
from storydiffusion.writer.targets import LONGEST_NAME, Target

UNREAD_IDEA = (
    f"the idea is in none of the languages that writer=rules reads ({', '.join(LANGUAGES)}), so the story does not "
    "follow it; writer=chat reads any"
)


def describe_not_drawn(reading: Reading, target: Target, so: str) -> Iterator[str]:
    """Yield a sentence about characters that are known but not drawn; `so` says what the images show."""
    if not reading.not_drawn:
        return
    words, kinds = ", ".join(reading.not_drawn), ", ".join(target.values["kind"])
    if target.free:
        yield f"writer=rules describes none of these: {words}{so}; it describes {kinds}, and writer=chat any"
    else:
        yield f"the model draws none of these: {words}{so}; it draws {kinds}"


def describe_loss(
    brief: Brief, reading: Reading, name: str, plot: Mapping[str, Any], thing: str | None, shown: set[str]
) -> Iterator[str]:
    """Yield sentences about what of the idea a story of this plot and thing, which shows these values, is not about."""
    yield from describe_not_drawn(reading, brief.target, ", so the story shows others")
    if reading.unknown:
        limit = "" if brief.target.free else ", though the model draws StoryWorld's words alone"
        so = "" if name in reading.plots else f", so the story is about {plot['theme']}"
        yield (
            f"writer=rules has no words for these of the idea: {', '.join(reading.unknown)}{so}; "
            f"writer=chat reads any{limit}"
        )
    yield from _describe_plot(brief, reading, name, plot)
    if plot["object"] == "any" and not reading.objects and name in reading.plots:
        things = ", ".join(each for each in brief.target.values["object"] if each != "none")
        teller = "writer=rules tells" if brief.target.free else "the model draws"
        yield f"the story is about {with_article(str(thing))}: of things {teller} only {things}"
    characters = [mention.name[:LONGEST_NAME] or mention.kind for mention in reading.drawn]
    is_said = brief.emotion is not None and name not in reading.plots  # by the sentence about the plot
    events = [word for word in reading.events if not is_said and word not in reading.plots.get(name, ())]
    asked = dict.fromkeys([*characters, *reading.places, *reading.objects, *reading.actions, *events])
    if left_out := [word for word in asked if word not in shown]:
        yield f"the story leaves these of the idea out: {', '.join(left_out)}; try more panels or another seed"


def _describe_plot(brief: Brief, reading: Reading, name: str, plot: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence if the idea names events that this plot is not about."""
    events = reading.events if brief.emotion is not None and name not in reading.plots else ()
    missed = dict.fromkeys([*events, *reading.untold])
    if missed:
        plots = f"with emotion={brief.emotion}" if brief.emotion else "of writer=rules"
        yield f"no plot {plots} is about {', '.join(missed)}; the story is about {plot['theme']}"

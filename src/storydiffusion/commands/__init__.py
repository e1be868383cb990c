"""The command line: `storydiffusion VERB key=value …`.

The verb `make-shards` is commands/make_shards.py, whose `main` takes the settings of conf/make_shards.yaml; the
same holds for every other verb. A new one needs these two files and a line in VERBS.
"""

import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.files.closed_output import ending_with_output

if TYPE_CHECKING:
    from storydiffusion.config.command_line import Command

VERBS = {
    "infer": "generate a story: panels, a comic page, a video and a report",
    "diff": "name what infer would change in a run folder, and which panels it would generate",
    "save-character": "save a character of a finished story, for other stories",
    "write": "write a story from an idea, a text or an emotion, as a file for infer",
    "export": "write a finished story as PDF, CBZ, animations or one archive",
    "studio": "make and change stories in a browser",
    "train": "train the semantic motion predictor, the motion modules or a part of the miniature",
    "evaluate": "measure images and clips: result.json, a table and plots",
    "compare": "compare the jobs of a sweep in one table, paired with a baseline",
    "reproduce": "measure every claim of RESULTS.md on the miniature and rewrite the document",
    "release": "turn a trained run into a folder to load, check and publish",
    "model-card": "write the model card of the miniature, with sample sheets",
    "words": "list the words that the miniature knows",
    "make-shards": "write shards of captioned videos",
    "index-shards": "index or verify shards for training",
    "user-study": "make a blind preference study as one offline HTML file",
    "user-study-results": "count the answers to a user study",
    "convert-emotion-probe": "convert a linear classifier of emotions from a torch file, to evaluate with",
    "export-vistorybench": "lay out generated stories for ViStoryBench",
}
"""Verb → what it does, in the order of --help."""

USAGE = "storydiffusion VERB [key=value …]"


def main() -> None:
    """Run the verb that the command line names."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    with ending_with_output():
        if verb in ("-h", "--help"):
            print(overview())
        elif verb == "--version":
            print(version("storydiffusion"))
        else:
            run_verb(verb, arguments, f"storydiffusion {verb}")


def run_script(verb: str) -> None:
    """Run `verb` as a script of its own, such as infer.py."""
    with ending_with_output():
        run_verb(verb, sys.argv[1:], Path(sys.argv[0]).name)


def run_verb(verb: str, arguments: list[str], program: str) -> None:
    """Run `verb` with the command line's `arguments`; errors name `program`."""
    from storydiffusion.config.command_line import fail, run
    from storydiffusion.config.renamed import VERBS as RENAMED_VERBS

    if verb in RENAMED_VERBS:
        fail("storydiffusion", f"{verb} is now storydiffusion {RENAMED_VERBS[verb]}")
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(VERBS)}"
        fail("storydiffusion", f"there is no verb {verb!r}; {hint}")
    run(load_verb(verb), verb.replace("-", "_"), arguments, program)


def load_verb(verb: str) -> "Command":
    """Return the command of `verb`."""
    return import_module(f"storydiffusion.commands.{verb.replace('-', '_')}").main


def overview() -> str:
    """List the verbs, one a line."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:{width}}{purpose}" for verb, purpose in VERBS.items()]
    return "\n".join([USAGE, "", *lines, "", "storydiffusion VERB --help shows the settings of a verb."])

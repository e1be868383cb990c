"""What differs between two manifests, in words: "caption of panel 2".

Values that are null, false or empty count as absent, so that a manifest written before a setting existed compares
equal to one with the setting left at such a default.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

from storydiffusion.output.manifest import Manifest

NOT_COMPARED = (
    "script", "run_dir", "overwrite", "story", "frames", "idea", "text", "emotion", "panels", "language", "retake",
    "candidates", "take", "extend", "keep_features", "page", "cuts", "exports",
    "paper",
)  # fmt: skip
"""keys of the configuration that say where a story lies or comes from, or that the script holds resolved"""
OLD_CSA = {"regions": "off", "isolate_until": 0.0, "positions": None}
"""settings of `csa` that older manifests lack, and what they were then"""
DERIVED = ("characters", "panels", "missing_characters")
"""keys of the script that are compared by rules of their own, or follow from other keys"""


@dataclass(frozen=True)
class Difference:
    """One difference; `before` or `after` is None where there is no such value."""

    what: str
    before: Any = None
    after: Any = None

    def __str__(self) -> str:
        if self.before is None and self.after is None:
            return self.what
        return f"{self.what}: {_show(self.before)} → {_show(self.after)}"


def find_differences(before: Manifest, after: Manifest) -> list[Difference]:
    """Return what differs in story, settings and weights, the story first."""
    old, new = to_plain(before), to_plain(after)
    old_script, new_script = (each["config"].get("script", {}) for each in (old, new))
    found = [*_compare_values("title", old["title"], new["title"])]
    found += _compare_characters(old_script.get("characters", []), new_script.get("characters", []))
    found += _compare_panels(old_script.get("panels", []), new_script.get("panels", []))
    skipped = {*DERIVED, "title"}
    found += _compare_mappings("", _without(old_script, skipped), _without(new_script, skipped))
    found += _compare_mappings("", _without(old["config"], NOT_COMPARED), _without(new["config"], NOT_COMPARED))
    weights = old["weights"].keys() | new["weights"].keys()
    return found + [
        Difference(f"weights {name}")
        for name in sorted(weights)
        if old["weights"].get(name) != new["weights"].get(name)
    ]


def to_plain(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as JSON reads it, with the weights of the video among the others."""
    plain = json.loads(json.dumps(asdict(manifest)))
    if isinstance(csa := plain["config"].get("csa"), dict):
        plain["config"]["csa"] = OLD_CSA | csa
    if plain["video"] is not None:
        plain["weights"] |= plain["video"]["weights"]
    return plain


def drop_absent(value: Any) -> Any:
    """Return plain data without the entries of mappings that are null, false or empty."""
    if isinstance(value, dict):
        kept = {key: drop_absent(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if each not in (None, "", [], {}) and each is not False}
    return [drop_absent(each) for each in value] if isinstance(value, list) else value


def _compare_values(what: str, before: Any, after: Any) -> Iterator[Difference]:
    if drop_absent({"value": before}) != drop_absent({"value": after}):
        yield Difference(what, before, after)


def _compare_mappings(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    """Compare settings, nested ones by their dotted names."""
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _compare_mappings(f"{prefix}{name}.", old, new)
        else:
            yield from _compare_values(f"{prefix}{name}", old, new)


def _compare_characters(before: Sequence[Mapping], after: Sequence[Mapping]) -> Iterator[Difference]:
    old, new = ({each["name"]: each["description"] for each in characters} for characters in (before, after))
    for name in dict.fromkeys([*old, *new]):
        if name not in old:
            yield Difference(f"{name} is a new character")
        elif name not in new:
            yield Difference(f"{name} is removed")
        else:
            yield from _compare_values(f"description of {name}", old[name], new[name])


def _compare_panels(before: Sequence[Mapping], after: Sequence[Mapping]) -> Iterator[Difference]:
    """Match panels by their prompts: equal ones in order first, then those that moved, the rest place by place."""
    matcher = SequenceMatcher(None, [each["prompt"] for each in before], [each["prompt"] for each in after], False)
    removed, added = [], []
    for tag, begin, end, new_begin, new_end in matcher.get_opcodes():
        old, new = list(range(begin, end)), list(range(new_begin, new_end))
        if tag == "equal" or len(old) == len(new):
            for one, other in zip(old, new, strict=True):
                yield from _compare_panel(before[one], after[other], other + 1)
        else:
            removed += old
            added += new
    for place in list(added):
        prompt = after[place]["prompt"]
        if (one := next((n for n in removed if before[n]["prompt"] == prompt), None)) is not None:
            removed.remove(one)
            added.remove(place)
            yield Difference(f"panel {one + 1} is now panel {place + 1}")
            yield from _compare_panel(before[one], after[place], place + 1)
    yield from (Difference(f"panel {place + 1} is new") for place in added)
    yield from (Difference(f"panel {place + 1} is removed") for place in removed)


def _compare_panel(before: Mapping[str, Any], after: Mapping[str, Any], number: int) -> Iterator[Difference]:
    for name in dict.fromkeys([*before, *after]):
        if name != "characters":  # those named in the prompt
            yield from _compare_values(f"{name} of panel {number}", before.get(name), after.get(name))


def _without(values: Mapping[str, Any], names: Sequence[str] | set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _show(value: Any) -> str:
    return "none" if value is None or value == "" else json.dumps(value, ensure_ascii=False)

"""Former names of settings and verbs: an old command is answered with the name to write now."""

from collections.abc import Collection

KEYS = {
    "consistency": "csa",
    "consistency.semantics": "csa.variant",
    "consistency.bank": "csa.anchor_panels",
    "consistency.window": "csa.neighbor_window",
    "reference": "baseline",
    "model.video.end_frames": "model.video.boundary_frames",
    "model.video.end_attention": "model.video.boundary_attention",
    "recipe.average_decay": "recipe.ema_decay",
    "recipe.warmup": "recipe.warmup_steps",
    "recipe.given_ends": "recipe.boundary_frame_prob",
    "benchmark.way": "benchmark.method",
    "objective": "recipe",
}
"""Former key or group → its present name; keys below it move with it."""

VALUES = {
    "model.video.boundary_frames": {"exact": "clamped", "semantic": "free"},
    "recipe": {"judge": "attribute_classifier"},
    "recipe.part": {"judge": "attribute_classifier"},
    "experiment": {
        "ablation_bank": "ablation_anchor_panels",
        "ablation_semantics": "ablation_variant",
        "ablation_window": "ablation_neighbor_window",
        "storyworld_judge": "storyworld_attribute_classifier",
        "storyworld_told_ends": "storyworld_free_boundary",
    },
}
"""Present key or group → its former values."""

VERBS = {
    "measure": "infer benchmark=stories",
    "measure_video": "infer benchmark=transitions",
    "collect": "compare",
    "results": "reproduce",
    "card": "model-card",
}
"""Former command, `python -m storydiffusion.NAME` → the verb and its settings."""


def explain_renamed(key: str, known: Collection[str], value: str | None = None) -> str | None:
    """Return one sentence that gives the present name of a former key or value; None where neither is a former one.

    Args:
        key: a dotted key, or a group.
        known: the keys that exist.
        value: what `key` was set to.
    """
    new_key = key if key in known else _rename(key)
    new_value = VALUES.get(new_key, {}).get(str(value))
    if new_key not in known or (new_key == key and new_value is None):
        return None
    if key == "objective":
        return "the group objective is part of recipe=transition now: set recipe.KEY=VALUE"
    return f"{key} is now {new_key}" if new_value is None else f"{key}={value} is now {new_key}={new_value}"


def _rename(key: str) -> str:
    for old in sorted(KEYS, key=len, reverse=True):
        if key == old or key.startswith(f"{old}."):
            return KEYS[old] + key.removeprefix(old)
    return key

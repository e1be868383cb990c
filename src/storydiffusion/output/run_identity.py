"""What two manifests must share for a run to resume."""

import json
from dataclasses import asdict
from typing import Any

from storydiffusion.output.differences import OLD_CSA, drop_absent
from storydiffusion.output.manifest import Manifest

NOT_OF_PANELS = (
    "run_dir", "overwrite", "story", "frames", "video", "fps", "hold", "captions", "font", "page", "cuts",
    "exports", "paper", "idea", "text", "emotion", "panels", "language", "writer", "retake", "candidates", "take",
    "extend", "keep_features",
)  # fmt: skip
"""keys of the configuration that panels do not depend on; what was written is in the script"""


def get_identity(manifest: Manifest) -> Any:
    """Return what two manifests must share for a run to resume: everything but place, time and video."""
    config = {key: value for key, value in manifest.config.items() if key not in NOT_OF_PANELS}
    if isinstance(model := config.get("model"), dict):
        config["model"] = {key: value for key, value in model.items() if key != "video"}
    if isinstance(csa := config.get("csa"), dict):
        config["csa"] = {key: value for key, value in (OLD_CSA | csa).items() if key != "panels_at_once"}
    if "script" in config:  # keys that it had not, when the folder was made, are at their defaults
        config["script"] = drop_absent(json.loads(json.dumps(config["script"])))
    return json.loads(
        json.dumps([manifest.title, manifest.model, manifest.origin, config, asdict(manifest)["weights"]])
    )

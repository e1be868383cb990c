"""The writer's own YAML files: words and sentences, parsed by libyaml where PyYAML has it, ten times faster."""

from pathlib import Path
from typing import Any

import yaml

LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_words(file: Path) -> Any:
    """Return the content of a YAML file of this package."""
    return yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER)

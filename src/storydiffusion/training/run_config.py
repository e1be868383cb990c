"""A run's configuration: write it beside the results, and check that checkpoints have the same."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.utilities import rank_zero_only

from storydiffusion.config.loading import flat
from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically


class ConfigFile(L.Callback):
    """Writes `folder`/config.yaml when training starts, after a checkpoint has accepted the configuration."""

    def __init__(self, folder: str | Path, config: Mapping[str, Any]) -> None:
        self.file = Path(folder) / "config.yaml"
        self.config = dict(config)

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        write_atomically(self.file, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True).encode())


def check_same_config(stored: Any, current: Mapping[str, Any], mutable: Iterable[str]) -> None:
    """Raise UserError if a checkpoint's configuration differs from the current one in other than the `mutable` keys.

    Keys are dotted; a mutable key includes all below it.
    """
    if not isinstance(stored, Mapping):
        raise UserError(
            "the checkpoint is of another kind of training and has no configuration: choose another run_dir"
        )
    before, now = flat(stored), flat(current)
    mutable = tuple(mutable)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not any(key == name or key.startswith(f"{name}.") for name in mutable):
            raise UserError(
                f"the checkpoint was written with {key}={before.get(key)}, not {now.get(key)}: set it back, or choose "
                "another run_dir"
            )

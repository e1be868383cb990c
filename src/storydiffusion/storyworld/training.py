"""One training of a part of the miniature: fits, resumes, exports, and records what it took."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from storydiffusion.storyworld.recipe_module import RecipeModule
from storydiffusion.training.stopwatch import Stopwatch, machine
from storydiffusion.training.weight_averaging import WeightAveraging

RECORD = "training.json"


@dataclass
class Training:
    """A module with its trainer; `fit` goes on from run_dir/checkpoints/last.ckpt where there is one."""

    module: RecipeModule
    trainer: L.Trainer
    average: WeightAveraging
    stopwatch: Stopwatch
    checkpoints: ModelCheckpoint

    def fit(self) -> None:
        last = Path(str(self.checkpoints.dirpath)) / "last.ckpt"
        self.trainer.fit(self.module, ckpt_path=str(last) if last.exists() else None, weights_only=True)

    def export(self, folder: Path) -> dict[str, float]:
        """Writes the averaged weights into `folder` with a record of how they came about; returns measured figures."""
        folder.mkdir(parents=True, exist_ok=True)
        part = self.module.recipe.part
        with self.average.applied(self.module):
            figures = self.module.to("cpu").export(folder)
        file = folder / RECORD
        record = json.loads(file.read_text()) if file.exists() else {}
        record[part] = {
            "recipe": asdict(self.module.recipe),
            "wall_seconds": round(self.stopwatch.seconds),
            "machine": machine(),
            "torch": str(torch.__version__),
            "figures": {name: round(value, 4) for name, value in figures.items()},
        }
        file.write_text(json.dumps(record, indent=2) + "\n")
        return figures

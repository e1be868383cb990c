"""A training shows its own messages and hides those of libraries that do not concern it."""

import subprocess
import sys

from tests.conftest import ROOT
from tests.helpers.video_model import overrides

HIDDEN = ("Tip:", "litlogger", "LeafSpec", "anonymous", "is smaller than the logging interval", "in eval mode")


def test_a_training_shows_no_advertisement_and_no_deprecation_of_libraries(tiny_video_model, cache, tmp_path):
    command = [
        sys.executable, str(ROOT / "train.py"), *overrides(tiny_video_model, cache), f"run_dir={tmp_path}/run",
        f"export={tmp_path}/export", "trainer.max_steps=1", "trainer.log_every=20", "logger=wandb_offline",
    ]  # fmt: skip
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    shown = outcome.stdout + outcome.stderr
    assert outcome.returncode == 0, shown
    assert "trained: " in shown
    for message in HIDDEN:
        assert message not in shown, shown

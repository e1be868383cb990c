"""A tiny model folder of random weights that looks like the miniature: StoryWorld's words, a judge and its record."""

import json
import shutil
from pathlib import Path

from tests.conftest import build_tiny_model


def build_world_model(folder: Path) -> Path:
    """Writes `folder`: the tiny model with StoryWorld's tokenizer, a text encoder to it, judge/ and training.json."""
    import torch
    from transformers import CLIPTextModel

    from storydiffusion.storyworld.clip import text_config
    from storydiffusion.storyworld.judge import Judge
    from storydiffusion.storyworld.tokenizer import build_tokenizer

    build_tiny_model(folder)
    shutil.rmtree(folder / "tokenizer")
    build_tokenizer().save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = text_config(32, 1)
        config.hidden_size = 16
        config.num_attention_heads = 2
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
        Judge((4, 4, 4, 4)).save(folder / "judge")
    recipe = {"part": "judge", "steps": 1, "batch_size": 2}
    trained = {"recipe": recipe, "wall_seconds": 90, "machine": "a machine", "figures": {"kind": 0.995, "shirt": 0.5}}
    (folder / "training.json").write_text(json.dumps({"judge": trained}))
    return folder

"""A tiny model folder of random weights that looks like the miniature: StoryWorld's words, a judge and its record."""

import json
import shutil
from pathlib import Path

from tests.conftest import build_tiny_model
from tests.helpers.video_model import add_video_parts


def build_world_model(folder: Path, edition: int = 1) -> Path:
    """Write `folder`: the tiny model with the tokenizer of an edition of StoryWorld and the parts that go with it.

    These are a text encoder, image_encoder/ with a text tower, attribute_classifier/ and training.json.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel

    from storydiffusion.storyworld.attribute_classifier import CLASSIFIERS
    from storydiffusion.training.miniature.contrastive import build_text_config
    from storydiffusion.training.miniature.tokenizer import build_tokenizer

    build_tiny_model(folder)
    shutil.rmtree(folder / "tokenizer")
    build_tokenizer(edition).save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = build_text_config(32, 1, edition)
        config.hidden_size = 16
        config.num_attention_heads = 2
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
        CLASSIFIERS[edition]((4, 4, 4, 4)).save(folder / "attribute_classifier")
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 32, "patch_size": 16}
        clip = CLIPConfig(text_config=config.to_dict(), vision_config=vision, projection_dim=8)
        CLIPModel(clip).save_pretrained(folder / "image_encoder")
    recipe = {"part": "attribute_classifier", "steps": 1, "batch_size": 2}
    trained = {"recipe": recipe, "wall_seconds": 90, "machine": "a machine", "figures": {"kind": 0.995, "shirt": 0.5}}
    (folder / "training.json").write_text(json.dumps({"attribute_classifier": trained}))
    return folder


def build_mood_model(folder: Path, accuracy: float = 0.75) -> Path:
    """Writes `folder`: the tiny model of the second edition, with image_encoder/, its emotion_probe/ and a card."""
    import numpy as np
    import torch
    from transformers import CLIPConfig, CLIPModel

    from storydiffusion.models.emotion_probe import FILE, FOLDER, EmotionProbe
    from storydiffusion.training.miniature.contrastive import build_text_config
    from storydiffusion.training.miniature.tokenizer import build_tokenizer

    build_world_model(folder, edition=2)
    (folder / "storydiffusion.json").write_text(json.dumps({"kind": "miniature", "edition": 2}))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = CLIPConfig(vision_config={**vision, "image_size": 32, "patch_size": 16}, projection_dim=8)
        config.text_config = build_text_config(32, 1, edition=2)
        CLIPModel(config).save_pretrained(folder / "image_encoder")
    build_tokenizer(2).save_pretrained(folder / "image_encoder")
    weight = np.random.default_rng(0).normal(size=(8, 16 * 5))  # 4 patches and the class token
    EmotionProbe(weight, np.zeros(8), "tokens", True, {"one character": accuracy}).save(folder / FOLDER / FILE)
    return folder


def build_world_video_model(folder: Path) -> Path:
    """The same with video parts: predictor/, and released/predictor/, one without layers."""
    import torch

    from storydiffusion.models.predictor_files import save_predictor
    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor

    build_world_model(folder)
    add_video_parts(folder)
    record = json.loads((folder / "training.json").read_text())
    record["attribute_classifier"]["figures"] |= {"hat": 0.25, "tone": 0.75}
    (folder / "training.json").write_text(json.dumps(record))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, layers in (("predictor", 1), ("released/predictor", 0)):
            settings = {
                "width": 16,
                "heads": 2,
                "head_width": 8,
                "context_width": 16,
                "image_width": 16,
                "layers": layers,
            }
            save_predictor(SemanticMotionPredictor(**settings), settings, folder / name)
    return folder

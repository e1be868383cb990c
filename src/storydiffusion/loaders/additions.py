"""Change a loaded pipeline as its configuration asks: LoRA, textual inversion, skipped text layers, FreeU."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storydiffusion.config import FreeUConfig
from storydiffusion.errors import UserError, first_line
from storydiffusion.loaders.resolve import ResolvedModel

SDXL_EMBEDDINGS: Mapping[str, str] = {"clip_l": "", "clip_g": "_2"}
"""Tensor in an embedding's file → end of the names of the tokenizer and text encoder that it is for."""


def apply_additions(pipe: Any, model: ResolvedModel) -> None:
    """Apply all additions of a model to its pipeline, before it is moved to its device.

    Raises:
        UserError: a file that does not fit the model; the message names it.
    """
    for number, (file, scale) in enumerate(model.added.lora.items()):
        fuse_lora(pipe, file, scale, f"lora_{number}")
    for word, file in model.added.textual_inversion.items():
        load_textual_inversion(pipe, word, file)
    if model.config.clip_skip:
        skip_text_layers(pipe, model.config.clip_skip)
    if model.config.freeu is not None:
        enable_freeu(pipe, model.config.freeu)


def fuse_lora(pipe: Any, file: Path, scale: float, name: str) -> None:
    """Add a LoRA [Hu et al. 2021] to the weights, W + scale · B A, and leave no layers of it behind.

    Raises:
        UserError: a file that cannot be read, or was made for another model.
    """
    with _report(f"model.lora: {file}"):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name, local_files_only=True)
    if not any(name in names for names in pipe.get_list_adapters().values()):
        raise UserError(f"model.lora: {file} has no layer of this model: choose a LoRA made for it")
    parts = [part for part in pipe._lora_loadable_modules if name in pipe.get_list_adapters().get(part, ())]
    pipe.fuse_lora(components=parts, lora_scale=scale, adapter_names=[name])
    pipe.unload_lora_weights()


def load_textual_inversion(pipe: Any, word: str, file: Path) -> None:
    """Add an embedding [Gal et al. 2022] as the word `word`, for both text encoders in SDXL.

    Raises:
        UserError: a file that cannot be read, was made for another model, or a word that the tokenizer has.
    """
    with _report(f"model.textual_inversion.{word}: {file}"):
        if not hasattr(pipe, "text_encoder_2"):
            pipe.load_textual_inversion(str(file.parent), weight_name=file.name, token=word, local_files_only=True)
            return
        from diffusers.loaders.textual_inversion import load_textual_inversion_state_dicts

        (embeddings,) = load_textual_inversion_state_dicts([str(file.parent)], weight_name=file.name)
        if missing := [key for key in SDXL_EMBEDDINGS if key not in embeddings]:
            raise ValueError(f"it has no {missing[0]}, SDXL's text encoders read {' and '.join(SDXL_EMBEDDINGS)}")
        for key, suffix in SDXL_EMBEDDINGS.items():
            encoder, tokenizer = getattr(pipe, f"text_encoder{suffix}"), getattr(pipe, f"tokenizer{suffix}")
            pipe.load_textual_inversion(embeddings[key], token=word, text_encoder=encoder, tokenizer=tokenizer)


def skip_text_layers(pipe: Any, count: int) -> None:
    """Leave out the last layers of the text encoder, so that its final norm follows the layer before them.

    Raises:
        UserError: for SDXL, which reads its penultimate layers, or fewer layers than that.
    """
    if hasattr(pipe, "text_encoder_2"):
        raise UserError("model.clip_skip is for SD1.5; SDXL reads the penultimate layers: set model.clip_skip=null")
    encoder = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).encoder
    if count >= len(encoder.layers):
        raise UserError(f"model.clip_skip={count}, but the text encoder has {len(encoder.layers)} layers: skip fewer")
    encoder.layers = encoder.layers[: len(encoder.layers) - count]
    pipe.text_encoder.config.num_hidden_layers = len(encoder.layers)


def enable_freeu(pipe: Any, freeu: FreeUConfig) -> None:
    """Scale skip connections and backbone features of the U-Net's first two up blocks."""
    pipe.enable_freeu(s1=freeu.s1, s2=freeu.s2, b1=freeu.b1, b2=freeu.b2)


@contextmanager
def _report(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # parsers of libraries raise exceptions of any class
        problem = f"{what} does not fit this model or is damaged ({first_line(error)})"
        raise UserError(f"{problem}: choose one made for it, or fetch it again") from error

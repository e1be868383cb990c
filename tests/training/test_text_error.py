"""The error of a frame's tokens against the text encoder's states of its caption."""

import torch

from storydiffusion.loaders.video import encode_example_words
from storydiffusion.training.transition_module import TransitionModule
from tests.helpers.transition_module import step
from tests.helpers.video_model import FRAMES


def text_only(make, **recipe) -> TransitionModule:
    return make("predictor", diffusion_weight=0.0, text_weight=1.0, **recipe)


def test_text_error_is_that_of_the_frames_tokens_against_the_caption(make, batch, monkeypatch):
    module = text_only(make)
    monkeypatch.setattr(module.video_unet, "forward", None)  # the U-Net is skipped
    outputs = step(module, batch)
    features = module.image_encoder.features(batch.frames.flatten(0, 1), module.model.features)
    context = module.predictor.context(module.predictor.encode(features)).unflatten(0, (2, FRAMES))
    states = module.text_encoder(batch.captions)[:, 1:3]  # of the two words after the start token
    words = encode_example_words(module.model)
    expected = (context - states[:, None]).square().mean((1, 2, 3)) / words.var()
    torch.testing.assert_close(outputs["text"], expected)
    assert outputs.keys() == {"loss", "losses", "text"}
    torch.testing.assert_close(outputs["losses"], outputs["text"])


def test_text_error_of_captioned_frames(make, batch):
    module = text_only(make)
    tokens = module.semantic_tokens(batch.frames)
    of_clips = module.text_errors(tokens, batch.captions)
    repeated = [text for text in batch.captions for _ in range(FRAMES)]
    torch.testing.assert_close(module.text_errors(tokens, repeated), of_clips)
    one = module.text_errors(tokens[:, :1], [repeated[0], repeated[FRAMES]])
    changed = module.text_errors(tokens, [*repeated[:1], *["the fox runs"] * (FRAMES - 1), *repeated[FRAMES:]])
    assert changed[0] != of_clips[0]
    assert changed[1] == of_clips[1]
    assert one.shape == (2,)


def test_a_dropped_caption_has_no_text_error(make, batch):
    module = text_only(make)
    tokens = module.semantic_tokens(batch.frames)
    errors = module.text_errors(tokens, ["", batch.captions[1]])
    assert errors.tolist() == [0, module.text_errors(tokens, batch.captions)[1].item()]


def test_text_error_trains_all_but_the_transformer_and_falls(make, batch):
    module = text_only(make)
    optimizer = torch.optim.Adam(module.trained_weights(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = step(module, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    learning = {name.split(".")[0] for name, weight in module.predictor.named_parameters() if weight.grad is not None}
    assert learning == {"to_tokens", "context_projection", "context_norm"}
    assert losses[-1] < 0.2 * losses[0]

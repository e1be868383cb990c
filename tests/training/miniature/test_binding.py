"""Whose words a character's cells read: the words found, the probabilities recorded, the loss."""

import math

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from storydiffusion.storyworld.edition import get_edition
from storydiffusion.training.miniature.binding import binding_loss, find_own_words, record_cross_attention
from storydiffusion.training.miniature.tokenizer import build_tokenizer
from tests.attention.conftest import tiny_unet


def read(tokenizer, text: str, marked: torch.Tensor) -> str:
    ids = torch.tensor(tokenizer(text, padding="max_length").input_ids)
    return tokenizer.decode(ids[marked])


def test_own_words_are_those_of_the_clauses():
    edition, tokenizer = get_edition(2), build_tokenizer(2)
    for index in range(200):
        truth = edition.sample(5, index)
        prompt = edition.draw_prompt(truth, index)
        own = find_own_words(edition, tokenizer, [truth], [prompt], 77)
        assert own.shape == (2, 77)
        assert own.any(-1).sum() == len(truth.characters)
        for slot, (start, end) in enumerate(prompt.clauses):
            expected = tokenizer.decode(tokenizer(prompt.text[start:end]).input_ids[1:-1])
            assert read(tokenizer, prompt.text, own[slot]) == expected


def test_own_words_in_a_pair_are_those_about_the_same_looks():
    edition, tokenizer, swapped = get_edition(2), build_tokenizer(2), 0
    for index in range(100):
        truths = [edition.sample_pair_member(5, 2 * index + k) for k in (0, 1)]
        own = find_own_words(edition, tokenizer, truths, edition.draw_pair_prompts(*truths, index), 77)
        first, second = (edition.get_looks(truth) for truth in truths)
        for i, looks in enumerate(first):
            for j, others in enumerate(second):
                assert torch.equal(own[i], own[2 + j]) == (looks == others)
                swapped += looks == others and i != j
    assert swapped > 5


def test_recording_changes_nothing_but_the_processor():
    torch.manual_seed(0)
    unet = tiny_unet().eval()
    width = unet.config.cross_attention_dim
    noised, steps, context = torch.randn(2, 4, 16, 16), torch.tensor([3, 7]), torch.randn(2, 5, width)
    unet.set_attn_processor(AttnProcessor())
    plain = unet(noised, steps, context).sample
    recorders = record_cross_attention(unet)
    torch.testing.assert_close(unet(noised, steps, context).sample, plain, rtol=0, atol=1e-6)
    assert len(recorders) == sum(name.endswith("attn2.processor") for name in unet.attn_processors)
    for recorder in recorders:
        probabilities = recorder.take()
        assert probabilities.shape[::2] == (2, 5)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:2]))
        with pytest.raises(RuntimeError):
            recorder.take()


def two_characters() -> tuple[torch.Tensor, torch.Tensor]:
    """Return words 1–2 of a character on the left half, words 3–4 of one on the right half of 4×4 cells."""
    words = torch.tensor([[False, True, True, False, False, False], [False, False, False, True, True, False]])[None]
    cover = torch.zeros(1, 2, 4, 4)
    cover[0, 0, :, :2] = cover[0, 1, :, 2:] = 1
    return words, cover


def attention_of(share: float, cells: int = 4) -> torch.Tensor:
    """Return probabilities whose cells give this share of what they give to characters to their own words."""
    own, other = 0.6 * share / 2, 0.6 * (1 - share) / 2
    left, right = [0.3, own, own, other, other, 0.1], [0.3, other, other, own, own, 0.1]
    rows = [left if cell % cells < cells // 2 else right for cell in range(cells * cells)]
    return torch.tensor([rows])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("cells", [4, 2])
def test_the_loss_is_the_cross_entropy_of_the_own_share_on_every_grid(share, cells):
    loss = binding_loss(attention_of(share, cells), *two_characters())
    assert loss.item() == pytest.approx(-math.log(share), abs=1e-5)


def test_the_loss_ignores_images_without_a_rival():
    words, cover = two_characters()
    alone = words.clone()
    alone[0, 1] = False
    dropped = torch.zeros_like(words)
    for only in (alone, dropped):
        assert binding_loss(attention_of(0.2), only, cover).item() == 0
        both = binding_loss(attention_of(0.2).expand(2, -1, -1), torch.cat([words, only]), cover.expand(2, -1, -1, -1))
        assert both.item() == pytest.approx(-math.log(0.2), abs=1e-5)


def test_gradients_move_attention_to_own_words():
    scores = attention_of(0.3).log().requires_grad_()
    binding_loss(scores.softmax(-1), *two_characters()).backward()
    assert scores.grad is not None
    assert bool((scores.grad[0, 0, 1:3] < 0).all())
    assert bool((scores.grad[0, 0, 3:5] > 0).all())
    torch.testing.assert_close(scores.grad[0, 0, [0, 5]], torch.zeros(2), rtol=0, atol=1e-6)

"""Joint attention with shared image tokens: which tokens attend to which, and keys that move."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from storydiffusion.attention import joint_attention
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup, batch_plan
from storydiffusion.attention.joint_attention import attend_joint, rotate, shift_angles
from storydiffusion.attention.joint_processor import torch_kernel
from storydiffusion.attention.variants import select_tokens

PANELS, TEXT, TOKENS, REFERENCE = 3, 2, 6, 4
IMAGE = slice(TEXT, TEXT + TOKENS)
LENGTH = TEXT + TOKENS + REFERENCE


def inputs(seed=0):
    torch.manual_seed(seed)
    return [torch.randn(PANELS, LENGTH, 2, 8) for _ in range(3)]


def shared(query, key, value, rate=0.5, may_share=None, **options):
    story = PanelGroup(PANELS, may_share=may_share)
    attended = select_tokens(ConsistentSelfAttentionConfig(), story, TOKENS, rate, 0)
    plan = batch_plan([attended], [PANELS], 1, TOKENS)
    assert plan is not None
    return attend_joint(query, key, value, plan, IMAGE, torch_kernel, **options)


def outside(x):
    return torch.cat([x[:, : IMAGE.start], x[:, IMAGE.stop :]], dim=1)


def test_text_and_references_attend_as_without_sharing():
    query, key, value = inputs()
    plain = torch_kernel(query, key, value, None)
    output = shared(query, key, value)
    torch.testing.assert_close(outside(output), outside(plain))
    assert (output[:, IMAGE] - plain[:, IMAGE]).abs().amax((1, 2, 3)).min() > 1e-2


@pytest.mark.parametrize("place", [slice(0, TEXT), slice(TEXT + TOKENS, LENGTH)], ids=["text", "reference"])
def test_text_and_references_of_other_panels_are_never_read(place):
    query, key, value = inputs()
    before = shared(query, key, value, rate=1.0)
    key[1, place] += 1
    value[1, place] += 1
    after = shared(query, key, value, rate=1.0)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1], atol=1e-2)


def test_only_panels_that_may_share_are_read():
    may_share = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    query, key, value = inputs()
    before = shared(query, key, value, may_share=may_share)
    value[1, IMAGE] += 1
    after = shared(query, key, value, may_share=may_share)
    assert torch.equal(before[2], after[2])
    assert torch.equal(outside(before)[0], outside(after)[0])
    assert not torch.allclose(before[0, IMAGE], after[0, IMAGE], atol=1e-2)


def test_padding_is_read_by_no_token():
    query, key, value = inputs()
    mask = torch.ones(PANELS, LENGTH, dtype=torch.bool)
    mask[:, 1] = False
    before = shared(query, key, value, mask=mask)
    key[:, 1] += 1
    value[:, 1] += 1
    assert torch.equal(before, shared(query, key, value, mask=mask))


def test_own_keys_stay_in_place():
    """Moved keys change what others contribute; a panel without sources attends as without a move."""
    query, key, value = inputs()
    angles = shift_angles([3.0], [8], 100)
    alone = torch.eye(PANELS)
    plain = torch_kernel(query, key, value, None)
    may_share = torch.ones(PANELS, PANELS)
    may_share[0] = alone[0]
    moved = shared(query, key, value, may_share=may_share, angles=angles)
    unmoved = shared(query, key, value, may_share=may_share)
    torch.testing.assert_close(moved[0], plain[0])
    assert (moved - unmoved)[1:, IMAGE].abs().amax((1, 2, 3)).min() > 1e-3


def test_turning_a_key_equals_rotary_embedding_at_the_moved_position():
    embedding = FluxPosEmbed(theta=10000, axes_dim=[16, 56, 56])
    torch.manual_seed(0)
    positions = torch.randint(0, 64, (20, 3))
    shift = torch.tensor([10, 0, 64])
    keys = torch.randn(1, 20, 2, 128)
    turn: Any = apply_rotary_emb
    here, there = (turn(keys, embedding(ids), sequence_dim=1) for ids in (positions, positions + shift))
    moved = rotate(here, shift_angles(shift.tolist(), [16, 56, 56], 10000))
    torch.testing.assert_close(moved, there, rtol=0, atol=2e-5)
    assert not torch.allclose(here, there, atol=0.1)


def count_calls(monkeypatch, most):
    """Return the output for three panels of which two have as many keys, and the number of calls of the kernel."""
    calls = []

    def kernel(*given):
        calls.append(given[0].shape)
        return torch_kernel(*given)

    monkeypatch.setattr(joint_attention, "most_gathered", lambda device: most)
    story = PanelGroup(PANELS, may_share=torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1]]))
    attended = select_tokens(ConsistentSelfAttentionConfig(), story, TOKENS, 0.5, 0)
    plan = batch_plan([attended], [PANELS], 1, TOKENS)
    assert plan is not None
    mask = torch.arange(LENGTH) != torch.tensor([[0], [1], [1]])  # padding in another place
    return attend_joint(*inputs(), plan, IMAGE, kernel, shift_angles([3.0], [8], 100), mask), len(calls)


def test_panels_with_as_many_keys_are_one_call_unless_they_are_too_large(monkeypatch):
    at_once, calls = count_calls(monkeypatch, 10**6)
    assert calls == 3  # text, two panels, one panel
    one_by_one, calls = count_calls(monkeypatch, 1)
    assert calls == 4
    torch.testing.assert_close(at_once, one_by_one, rtol=0, atol=1e-6)


def test_the_kernel_is_attention():
    query, key, value = inputs()
    heads = [x.transpose(1, 2) for x in (query, key, value)]
    expected = F.scaled_dot_product_attention(heads[0], heads[1], heads[2]).transpose(1, 2)
    assert torch.equal(torch_kernel(query, key, value, None), expected)

"""The estimate of a call's memory against a simulation of all allocations: real architectures on fake tensors."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.memory import ITEMSIZE, PARTS, LiveBytes, estimated_bytes, simulate
from storydiffusion.attention.chunks import plan_chunks
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import GATHER, AttentionPlan, PlanGroup, attend
from storydiffusion.attention.memory import CallMemory, fit_chunks
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.errors import UserError
from tests.attention.test_plugin import arguments
from tests.helpers.processes import in_child

ANCHORS = ConsistentSelfAttentionConfig(anchor_panels=2)


@pytest.mark.parametrize("name", ["miniature", "sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("limit", [None, 2])
@in_child
def test_the_estimate_is_the_simulated_memory(name, limit):
    config = replace(ANCHORS, panels_at_once=limit)
    peak, memory = simulate(name, 6, config)
    assert 0.6 < peak / estimated_bytes(memory, 6, config) <= 1.05


@in_child
def test_a_long_story_in_chunks_needs_the_memory_of_a_short_one():
    config = replace(ANCHORS, panels_at_once=4)
    short, long = (simulate("miniature", panels, config)[0] for panels in (8, 32))
    predicted = PARTS * ITEMSIZE * 16**3 * (32 - 8)  # bytes of the call's result
    assert long - short <= 3 * predicted
    assert simulate("miniature", 32, ANCHORS)[0] > 3 * short


@in_child
def test_attend_bounds_what_it_gathers_on_a_gpu():
    """32 panels of SDXL's 64 × 64 grid in float16, all to all; without a bound their keys alone take 5 GiB."""
    panels, tokens, channels = 64, 4096, 640
    with FakeTensorMode():
        q, k, v = (torch.empty(panels, tokens, channels, dtype=torch.float16, device="cuda") for _ in range(3))
        rows = torch.empty(panels, 16 * tokens, dtype=torch.long, device="cuda")
        plan = AttentionPlan([PlanGroup(torch.empty(panels, dtype=torch.long, device="cuda"), rows)], None)
        largest = []

        class Gathered(LiveBytes):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = super().__torch_dispatch__(func, types, args, kwargs)
                if func is torch.ops.aten.index_select.default:
                    largest.append(result.numel())
                return result

        with Gathered([q, k, v, rows]), torch.no_grad():
            attend(q, k, v, plan, heads=10)
    assert largest
    assert max(largest) <= GATHER


def test_auto_takes_the_largest_chunks_that_fit():
    sources = torch.zeros(6, 6, dtype=torch.bool)
    sources[:, :2] = True
    memory = CallMemory(panel=100, kept=10, gathered=1, most_gathered=3)
    needed = {limit: memory.of(plan_chunks(sources, limit)) for limit in range(2, 7)}
    assert needed[2] == 2 * 100 + 2 * 10 + 2
    assert needed[6] == 6 * 100 + 3
    for limit in (2, 4, 6):
        chunks = fit_chunks(sources, memory, round(needed[limit] / 0.9) + 1)
        assert max(len(chunk.panels) for chunk in chunks) == limit
    with pytest.raises(UserError, match=r"2 panels attend to each other and need about 0\.00 GiB together"):
        fit_chunks(sources, memory, 200)


def test_auto_knows_the_free_memory_of_this_machine(sd_pipe):
    joint, divided = [], []
    for sizes, config in ((joint, ANCHORS), (divided, replace(ANCHORS, panels_at_once="auto"))):
        hook = sd_pipe.unet.conv_in.register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(len(args[0])))
        with consistent_self_attention(sd_pipe, config) as state:
            sd_pipe(**arguments(), callback_on_step_end=state.on_step_end)
        hook.remove()
    assert joint == divided == [8, 8, 8]

"""The draws of a training step: functions of a clip's position alone."""

import pytest
import torch

from storydiffusion.training.clip_noise import _get_seed, draw_clip_noise


def test_joint_draws_occur_at_their_probability_and_leave_the_noise_as_it_was():
    noise = draw_clip_noise(3, range(2000), (2,), 1000)
    assert (noise.joint < 0.1).double().mean().item() == pytest.approx(0.1, abs=0.02)
    both = (noise.joint < 0.5) & (noise.dropout < 0.5)
    assert both.double().mean().item() == pytest.approx(0.25, abs=0.03)
    generator = torch.Generator().manual_seed(_get_seed(3, 0))
    torch.rand(3, generator=generator, dtype=torch.float64)
    assert torch.equal(noise.noise[0], torch.randn(2, generator=generator))


def test_noise_depends_on_the_position_not_on_the_processes():
    whole = draw_clip_noise(3, range(8, 12), (2, 3), 1000)
    halves = [draw_clip_noise(3, positions, (2, 3), 1000) for positions in (range(8, 10), range(10, 12))]
    for name in ("noise", "timesteps", "boundary", "dropout", "forcing"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves])), name
    assert len(whole.noise.unique()) == whole.noise.numel()
    other = draw_clip_noise(4, range(8, 12), (2, 3), 1000)
    assert not torch.equal(whole.noise, other.noise)


def test_timesteps_of_consecutive_clips_are_spread_and_all_occur():
    drawn = torch.cat([draw_clip_noise(0, range(8 * i, 8 * i + 8), (1,), 1000).timesteps for i in range(60)])
    gaps = drawn.view(-1, 8).sort().values.diff().float()
    assert gaps.max() < 240, "consecutive timesteps leave a gap"
    assert drawn.view(-1, 8).float().mean(1).sub(500).abs().max() < 110
    assert len(set((drawn // 10).tolist())) == 100

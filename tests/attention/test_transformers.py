"""Consistent self-attention in diffusion transformers: parity, guidance, restoring, and what is refused."""

from typing import Any

import pytest
import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxIPAdapterAttnProcessor
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from storydiffusion.attention import transformer_backbone
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.joint_attention import shift_angles
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.attention.token_samplers import SamplingContext, register_token_sampler
from storydiffusion.errors import UserError
from tests.attention.conftest import stable_diffusion
from tests.attention.transformers import (
    FAMILIES,
    HEIGHT,
    TEXT,
    TOKENS,
    WIDTH,
    dense_attention,
    flux,
    flux2,
    klein,
    qwen_image,
    stable_diffusion_3,
)
from tests.helpers.processes import in_child

PANELS = [0, 1, 2, 3]
GUIDED = {"flux": flux, "klein": klein, "qwen_image": qwen_image}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


def generate(family, config=None, stories=None, panels=None, callback=True, **changes):
    with consistent_self_attention(family.pipe, config, stories) as story:
        more = {"callback_on_step_end": story.on_step_end} if callback else {}
        return family.pipe(**family.arguments(panels or PANELS) | changes, **more).images


def plain(family, panels=None, **changes):
    return family.pipe(**family.arguments(panels or PANELS) | changes).images


def difference(x, y):
    """Largest difference of each panel."""
    return (x - y).abs().flatten(1).amax(1)


@pytest.mark.parametrize(
    ("config", "panels"),
    [
        (ConsistentSelfAttentionConfig(rate=0.0), PANELS),
        (ConsistentSelfAttentionConfig(variant="off"), PANELS),
        (ConsistentSelfAttentionConfig(end=0.1), PANELS),
        (ConsistentSelfAttentionConfig(), [0]),
    ],
    ids=["rate 0", "off", "no step active", "one panel"],
)
def test_without_sharing_equals_the_plain_pipeline_bit_for_bit(family, config, panels):
    assert torch.equal(generate(family, config, panels=panels), plain(family, panels))


def test_stories_of_one_panel_each_equal_plain_bit_for_bit(family):
    assert torch.equal(generate(family, stories=[1, 1, 1, 1]), plain(family))


SHIFTS = [
    ("flux", "same", None),
    ("flux", "beside", [0, 0, WIDTH]),
    ("flux", "reference", [1, 0, 0]),
    ("kontext", "beside", [0, 0, WIDTH]),
    ("kontext", "reference", [2, 0, 0]),  # its own reference image is at 1
    ("flux2", "same", None),
    ("flux2", "beside", [0, 0, WIDTH, 0]),
    ("flux2", "reference", [10, 0, 0, 0]),
    ("klein", "reference", [10, 0, 0, 0]),
    ("qwen_image", "same", None),
    ("qwen_image", "beside", [0, 0, WIDTH]),
    ("qwen_image", "reference", [1, 0, 0]),
    ("stable_diffusion_3", "same", None),
]


@pytest.mark.parametrize(("name", "positions", "shift"), SHIFTS)
def test_two_panels_at_rate_1_equal_a_dense_reference(name, positions, shift):
    family = FAMILIES[name]()
    shared = generate(family, ConsistentSelfAttentionConfig(rate=1.0, positions=positions), panels=[0, 1])
    with dense_attention(family, shift):
        dense = plain(family, [0, 1])
    torch.testing.assert_close(shared, dense, rtol=0, atol=1e-5)
    assert difference(shared, plain(family, [0, 1])).min() > 1e-4


def draw_beside_references(family, **call):
    """Return what a transformer predicts for two panels, by a call with its own reference images."""
    noise = torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(1))
    references = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(2))
    text = torch.randn(2, TEXT, 16, generator=torch.Generator().manual_seed(3))
    given = {"hidden_states": torch.cat([noise, references], 1), "encoder_hidden_states": text}
    with torch.no_grad():
        return family.pipe.transformer(**given, timestep=torch.ones(2), return_dict=False, **call)[0][:, :TOKENS]


def flux2_call():
    """Two reference images of 3 × 4 tokens, at 10 and 20."""
    grids = [(0, HEIGHT, WIDTH), (10, 3, 4), (20, 3, 4)]
    ids = [
        torch.cartesian_prod(torch.tensor([float(t)]), torch.arange(float(h)), torch.arange(float(w)), torch.zeros(1))
        for t, h, w in grids
    ]
    text = torch.zeros(TEXT, 4)
    return {"img_ids": torch.cat(ids)[None], "txt_ids": text[None], "guidance": torch.ones(2)}


def qwen_edit_call():
    """One reference image of 4 × 6 tokens, at 1."""
    return {"img_shapes": [[(1, HEIGHT, WIDTH), (1, 4, 6)]] * 2}


@pytest.mark.parametrize(
    ("make", "call", "slot"), [(flux2, flux2_call, [30, 0, 0, 0]), (qwen_image, qwen_edit_call, [2, 0, 0])]
)
def test_other_panels_are_seen_behind_own_references(make, call, slot):
    family, config = make(), ConsistentSelfAttentionConfig(rate=1.0, positions="reference")
    with consistent_self_attention(family.pipe, config, stories=[2], parts=1):
        shared = draw_beside_references(family, **call())
    with dense_attention(family, slot):
        dense = draw_beside_references(family, **call())
    torch.testing.assert_close(shared, dense, rtol=0, atol=1e-5)
    assert difference(shared, draw_beside_references(family, **call())).min() > 1e-4


@pytest.mark.parametrize(
    ("name", "default"),
    [("flux", "beside"), ("flux2", "reference"), ("qwen_image", "beside"), ("stable_diffusion_3", "same")],
)
def test_default_positions(name, default):
    family = FAMILIES[name]()
    chosen = generate(family, ConsistentSelfAttentionConfig(positions=default))
    assert torch.equal(generate(family), chosen)


def test_keys_are_moved_by_angles_that_are_computed_once(monkeypatch):
    family, computed = flux(layers=2), []
    monkeypatch.setattr(
        transformer_backbone, "shift_angles", lambda *given: computed.append(given) or shift_angles(*given)
    )
    generate(family, num_inference_steps=3)
    assert len(computed) == 1


@pytest.mark.parametrize("variant", ["eq2", "algorithm1", "official"])
def test_two_stories_at_once_are_those_alone(family, variant):
    config = ConsistentSelfAttentionConfig(variant=variant, seed=1)
    first, second = PanelGroup(2, key=1), PanelGroup(2, key=2)
    together = generate(family, config, [first, second])
    torch.testing.assert_close(together[:2], generate(family, config, [first], [0, 1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together[2:], generate(family, config, [second], [2, 3]), rtol=0, atol=1e-5)


def test_one_step_changes_what_it_should_and_nothing_else(family):
    """Panel 0 reads panel 1 and not panel 2; panel 3 reads none."""
    may_share = torch.zeros(4, 4, dtype=torch.bool)
    may_share[0, 1] = may_share[1, 0] = may_share[2, 1] = True
    stories = [PanelGroup(4, may_share=may_share)]
    noise = family.arguments(PANELS)["latents"]

    def one_step(changed):
        latents = noise.clone()
        latents[changed] += 0.5
        return generate(family, stories=stories, latents=latents, num_inference_steps=1)

    shared, original = generate(family, stories=stories, num_inference_steps=1), plain(family, num_inference_steps=1)
    assert difference(shared, original)[:3].min() > 1e-4
    torch.testing.assert_close(shared[3], original[3], rtol=0, atol=1e-5)
    by_1, by_2 = difference(one_step([1]), shared), difference(one_step([2]), shared)
    assert by_1[[0, 2]].min() > 1e-5
    assert by_1[3] == 0
    assert by_2[[0, 1, 3]].max() == 0


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_by_two_calls_counts_steps(name):
    family = GUIDED[name]()
    negative = family.negative(PANELS)
    guided = generate(family, **negative)
    assert torch.equal(generate(family, callback=False, **negative), guided)
    assert difference(guided, plain(family, **negative)).min() > 1e-4
    late = ConsistentSelfAttentionConfig(start=0.5)
    assert difference(generate(family, late, **negative), guided).min() > 1e-5
    with pytest.raises(UserError, match="callback_on_step_end"):
        generate(family, late, callback=False, **negative)


@pytest.mark.parametrize("name", GUIDED)
def test_both_calls_of_a_step_share_the_same_tokens(name):
    """Guidance with the prompt itself as the negative prompt equals no guidance."""
    family = GUIDED[name]()
    arguments = family.arguments(PANELS)
    same = {f"negative_{key}": value for key, value in arguments.items() if "embeds" in key}
    scale = "guidance_scale" if name == "klein" else "true_cfg_scale"
    guided = generate(family, callback=False, **{**same, scale: 3.0})
    torch.testing.assert_close(guided, generate(family, callback=False), rtol=0, atol=2e-5)


def test_skip_layer_guidance_of_stable_diffusion_3():
    """Its third call of a step holds one guidance part."""
    family = stable_diffusion_3()
    more = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    skipped = generate(family, num_inference_steps=3, **more)
    assert torch.equal(generate(family, callback=False, num_inference_steps=3, **more), skipped)
    assert difference(skipped, generate(family, num_inference_steps=3)).min() > 1e-5


@pytest.mark.parametrize("fail", [False, True])
def test_processors_and_hooks_are_restored(family, fail):
    transformer = family.pipe.transformer
    before, hooks = dict(transformer.attn_processors), len(transformer._forward_pre_hooks)
    try:
        with consistent_self_attention(family.pipe) as story:
            assert all(processor is not before[name] for name, processor in transformer.attn_processors.items())

            def stop(pipe, step, timestep, tensors):
                raise KeyError

            family.pipe(**family.arguments(PANELS), callback_on_step_end=stop if fail else story.on_step_end)
    except KeyError:
        assert fail
    assert all(processor is before[name] for name, processor in transformer.attn_processors.items())
    assert len(transformer._forward_pre_hooks) == hooks


@pytest.mark.parametrize("make", [flux, flux2])
def test_fused_projections_give_the_same_images(make):
    family = make()
    expected = generate(family)
    family.pipe.transformer.fuse_qkv_projections()
    torch.testing.assert_close(generate(family), expected, rtol=0, atol=1e-5)


def test_a_sampler_sees_the_image_tokens_of_its_layer(family, registries):
    layers = set()

    @register_token_sampler("attended", needs=["features", "attention_maps", "masks"])
    def attended(context: SamplingContext) -> torch.Tensor:
        assert context.features is not None
        assert context.attention_maps is not None
        assert context.masks is not None
        assert context.features.shape == (4, TOKENS, 32)
        assert torch.allclose(context.attention_maps.sum(-1), torch.ones(4, TOKENS), atol=1e-5)
        layers.add(context.layer)
        return context.sources[..., None] & context.masks

    masks = torch.zeros(4, 8 * HEIGHT, 8 * WIDTH)
    masks[:, :16] = 1
    config = ConsistentSelfAttentionConfig(sampler="attended")
    upper = generate(family, config, [PanelGroup(4, masks=masks)])
    assert len(layers) == len(family.pipe.transformer.attn_processors)
    assert difference(upper, plain(family)).min() > 1e-5
    assert torch.equal(generate(family, config, [PanelGroup(4, masks=0 * masks)]), plain(family))


@pytest.mark.parametrize(("make", "factor"), [(flux, 1), (flux2, 1), (qwen_image, 1), (stable_diffusion_3, 2)])
def test_a_rate_by_grid_names_the_only_one(make, factor):
    family = make()
    assert torch.equal(generate(family, ConsistentSelfAttentionConfig(rate={factor: 0.5})), generate(family))
    with pytest.raises(UserError, match="grid 8"):
        generate(family, ConsistentSelfAttentionConfig(rate={8: 0.5}))


@in_child
def test_a_compiled_transformer_shares_and_is_restored():
    family = flux()
    shared, original = generate(family), plain(family)
    family.pipe.transformer.compile(backend="eager")
    torch.testing.assert_close(generate(family), shared, rtol=0, atol=1e-5)
    torch.testing.assert_close(plain(family), original, rtol=0, atol=1e-5)


def ip_adapter(transformer):
    transformer.transformer_blocks[0].attn.set_processor(FluxIPAdapterAttnProcessor(32, 16))


def divided(transformer):
    processor: Any = FluxAttnProcessor()
    processor._parallel_config = object()
    transformer.transformer_blocks[0].attn.set_processor(processor)


def cached(transformer):
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (ip_adapter, r"^FluxIPAdapterAttnProcessor computes .*transformer_blocks\.0\.attn.*unload adapters"),
        (divided, "divided among devices"),
        (cached, r"^FirstBlockCacheConfig is enabled.*disable_cache"),
    ],
)
def test_what_would_not_be_shared_correctly_is_refused(change, error):
    family = flux()
    change(family.pipe.transformer)
    with pytest.raises(UserError, match=error):
        generate(family)


def test_fused_projections_of_stable_diffusion_3_are_refused():
    family = stable_diffusion_3()
    family.pipe.transformer.fuse_qkv_projections()
    with pytest.raises(UserError, match=r"^FusedJointAttnProcessor2_0 .*fused projections, so that it is JointAttn"):
        generate(family)


def test_images_packed_into_one_sequence_are_refused():
    transformer = flux().pipe.transformer
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0))
    call = {
        "hidden_states": torch.randn(2, 12, 64),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 32),
        "timestep": torch.ones(2),
        "txt_ids": torch.zeros(5, 3),
    }

    class Holder:
        def __init__(self):
            self.transformer = transformer

    with consistent_self_attention(Holder(), stories=[2]), torch.no_grad():
        transformer(**call, img_ids=torch.cat([ids, ids + torch.tensor([1.0, 0, 0])]))  # a reference image
        with pytest.raises(UserError, match="12 image tokens are not those of one 2 × 3 grid"):
            transformer(**call, img_ids=torch.cat([ids, ids]))


def test_panels_of_different_sizes_are_refused():
    transformer = qwen_image().pipe.transformer
    call = (torch.randn(2, 6, 16), torch.randn(2, 5, 16), None, torch.ones(2))

    class Holder:
        def __init__(self):
            self.transformer = transformer

    with consistent_self_attention(Holder(), stories=[2]), torch.no_grad():
        transformer(*call, [[(1, 2, 3)]] * 2)
        with pytest.raises(UserError, match=r"img_shapes .* same 6 image tokens"):
            transformer(*call, [[(1, 2, 3)], [(1, 3, 2)]])


def test_layered_images_are_refused():
    family = qwen_image()
    family.pipe.transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        use_layer3d_rope=True,
    )
    with pytest.raises(UserError, match="use_layer3d_rope"):
        generate(family)


def test_kept_keys_of_reference_images_are_refused():
    family = flux2()
    transformer = family.pipe.transformer
    with consistent_self_attention(family.pipe, stories=[2]), pytest.raises(UserError, match="kv_cache_mode"):
        transformer(torch.zeros(2, 24, 16), torch.zeros(2, 5, 16), torch.ones(2), kv_cache_mode="extract")


@pytest.mark.parametrize("make", [stable_diffusion, lambda: stable_diffusion_3().pipe], ids=["U-Net", "SD3"])
@pytest.mark.parametrize("positions", ["beside", "reference"])
def test_positions_need_rotary_positions(make, positions):
    with (
        pytest.raises(UserError, match=f"positions is '{positions}', but .* has no rotary positions"),
        consistent_self_attention(make(), ConsistentSelfAttentionConfig(positions=positions)),
    ):
        pass


def test_unknown_positions_are_refused():
    with pytest.raises(UserError, match="positions is 'above': choose one of same, beside, reference"):
        ConsistentSelfAttentionConfig(positions="above")


def test_panels_at_once_is_refused(family):
    with (
        pytest.raises(UserError, match=r"panels_at_once is 2, which .*Transformer2DModel does not support"),
        consistent_self_attention(family.pipe, ConsistentSelfAttentionConfig(panels_at_once=2)),
    ):
        pass

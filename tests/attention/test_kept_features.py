"""Images that read kept features of others equal those of a batch with these others.

In float64, where a difference of 1e-9 is rounding.
"""

from dataclasses import replace

import pytest
import torch

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.kept_features import FeatureStore
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.errors import UserError
from tests.attention.test_plugin import arguments

PANELS = 5
CONFIGS = {
    "all panels": ConsistentSelfAttentionConfig(blocks="all"),
    "anchors in chunks": ConsistentSelfAttentionConfig(anchor_panels=1, panels_at_once=2),
    "progressive in chunks": ConsistentSelfAttentionConfig(sampler="progressive", panels_at_once=1),
    "algorithm1": ConsistentSelfAttentionConfig(variant="algorithm1", tile_size=3),
    "official": ConsistentSelfAttentionConfig(variant="official"),
    "some steps, one grid": ConsistentSelfAttentionConfig(start=0.3, end=0.9, rate={2: 0.5}),
}


def generate(pipe, config, panels, features=None, **changes):
    given = arguments(panels=panels, **changes)
    given["latents"] = given["latents"].to(pipe.unet.dtype)
    with consistent_self_attention(pipe, config, [PanelGroup(PANELS)], features=features) as story:
        return pipe(**given, callback_on_step_end=story.on_step_end).images


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_images_that_read_kept_features_equal_those_beside_the_images_themselves(exact_pipe, name, guidance):
    config, recorded = CONFIGS[name], FeatureStore(records=range(PANELS))
    whole = generate(exact_pipe, config, range(PANELS), recorded, guidance=guidance)
    assert torch.equal(whole, generate(exact_pipe, config, range(PANELS), guidance=guidance))
    assert {tensor.shape[1] for tensor in recorded.recorded[0].values()} == {2 if guidance > 1 else 1}
    for computed in ([4], [1, 3], [0]):
        given = {panel: recorded.recorded[panel] for panel in range(PANELS) if panel not in computed}
        store = FeatureStore(given, records=computed)
        images = generate(exact_pipe, config, computed, store, guidance=guidance)
        torch.testing.assert_close(images, whole[computed], rtol=0, atol=1e-9)
        for panel in computed:
            assert store.recorded[panel].keys() == recorded.recorded[panel].keys()
            for at, tensor in store.recorded[panel].items():
                torch.testing.assert_close(tensor, recorded.recorded[panel][at], rtol=0, atol=1e-9)


def test_a_take_beside_kept_features_reads_nothing_else(exact_pipe):
    """Another image's features, or another call's, change the take."""
    config, store = CONFIGS["all panels"], FeatureStore(records=range(PANELS))
    generate(exact_pipe, config, range(PANELS), store)
    given = {panel: store.recorded[panel] for panel in range(4)}
    image = generate(exact_pipe, config, [4], FeatureStore(given))
    swapped = {**given, 0: given[1], 1: given[0]}
    assert (generate(exact_pipe, config, [4], FeatureStore(swapped)) - image).abs().max() > 1e-3
    turn = {"0": "1", "1": "0", "2": "2"}
    other_calls = {n: {turn[at[0]] + at[1:]: tensor for at, tensor in each.items()} for n, each in given.items()}
    assert (generate(exact_pipe, config, [4], FeatureStore(other_calls)) - image).abs().max() > 1e-6


def test_features_of_other_settings_are_refused(exact_pipe):
    config, store = CONFIGS["all panels"], FeatureStore(records=range(PANELS))
    generate(exact_pipe, config, range(PANELS), store)
    given = {panel: store.recorded[panel] for panel in range(4)}
    few = {panel: dict(list(each.items())[:-1]) for panel, each in given.items()}
    with pytest.raises(UserError, match=r"the kept features lack .* in call 2: they are of other settings"):
        generate(exact_pipe, config, [4], FeatureStore(few))


@pytest.mark.parametrize(
    "config", [replace(CONFIGS["all panels"], regions="characters"), ConsistentSelfAttentionConfig(variant="off")]
)
def test_features_that_depend_on_the_batch_are_refused(sd_pipe, config):
    with pytest.raises(UserError, match="features are kept of a U-Net's images, without regions"):
        generate(sd_pipe, config, range(PANELS), FeatureStore(records=[0]))

"""Sharing by region: exact draws, a dense reference, maps of real pipelines at tiny size, and what is refused."""

import itertools

import diffusers
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from storydiffusion.attention.backbones import UNetBackbone
from storydiffusion.attention.character_words import find_tokens, find_words
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import (
    PanelGroup,
    attend,
    batch_plan,
    draw_tokens,
    random_stream,
    uniform_counts,
)
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.attention.region_recorder import RegionRecorder
from storydiffusion.attention.regions import draw_in_regions, find_regions
from storydiffusion.attention.step_end import check_takes_callback
from storydiffusion.attention.variants import get_read_panels, get_same_place, get_sources, select_tokens
from storydiffusion.errors import UserError
from storydiffusion.pipelines.panels import view_panels
from tests.attention.conftest import NO_SAFETY, common_parts, tiny_unet
from tests.attention.story_plans import HEADS, TOKENS, random_projections
from tests.attention.test_guidance import PIPELINES, make
from tests.attention.test_guidance import arguments as call_arguments
from tests.attention.test_plugin import arguments, processors
from tests.helpers.processes import in_child

CAST = [{"fox": [2], "cat": [4, 5]}, {"cat": [1]}, {}, {"cat": [1], "fox": [3]}, {"fox": [1]}]
PLACES = ["park", "", "park", "", "park"]
WORDS = ["fox", "cat", "red fox", "a cat", "fox cat", "cat runs", "big fox", "no cat"]
WITHOUT_CALLBACK = {
    "StableDiffusionSAGPipeline", "StableDiffusionGLIGENPipeline", "StableDiffusionPipelineSafe",
    "StableDiffusionModelEditingPipeline", "StableDiffusionAdapterPipeline", "StableDiffusionUpscalePipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
}  # fmt: skip
BY_REGION = {"regions": "characters", "blocks": "all"}


def random_story(seed: int = 0, panels: int = 5) -> tuple[PanelGroup, torch.Tensor]:
    """A story, and a random region for each token."""
    story = PanelGroup(panels, characters=CAST[:panels], places=PLACES[:panels])
    generator = torch.Generator().manual_seed(seed)
    regions = [torch.randint(len(cast) + 1, (TOKENS,), generator=generator) for cast in CAST[:panels]]
    return story, torch.stack(regions)


def select(story, found, step=3, isolated=False, **settings):
    config = ConsistentSelfAttentionConfig(**{"regions": "characters", **settings})
    return select_tokens(config, story, TOKENS, config.get_rate(1), step, regions=found, isolated=isolated)


def owner(panel: int, region: int) -> str | None:
    return [None, *CAST[panel]][region]


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("shared", [False, True])
def test_every_region_gives_its_exact_share(rate, shared):
    _, regions = random_story()
    drawn = draw_in_regions(regions, rate, shared, torch.Generator().manual_seed(0))
    for i, j in itertools.product(range(5), range(5)):
        for region in range(3):
            there = regions[j] == region
            assert int((drawn[i, j] & there).sum()) == round(rate * int(there.sum()))
    assert bool((drawn == drawn[:1]).all()) == (shared or rate in (0.0, 1.0))


@pytest.mark.parametrize("shared", [False, True])
def test_one_region_a_panel_draws_as_without_regions(shared):
    sources = torch.ones(4, 4, dtype=torch.bool)
    whole = draw_tokens(uniform_counts(sources, TOKENS, 0.4), TOKENS, shared, random_stream(1))
    regions = torch.arange(4)[:, None].expand(4, TOKENS)
    assert torch.equal(draw_in_regions(regions, 0.4, shared, random_stream(1)), whole)


@pytest.mark.parametrize("variant", ["eq2", "shared_row"])
def test_panels_full_of_one_character_share_as_without_regions(variant):
    story = PanelGroup(3, characters=[{"fox": [1]}] * 3)
    by_region = select(story, torch.ones(3, TOKENS, dtype=torch.long), variant=variant)
    whole = select_tokens(ConsistentSelfAttentionConfig(variant=variant), story, TOKENS, 0.5, 3)
    assert [each.rows.tolist() for each in by_region] == [each.rows.tolist() for each in whole]


def allowed_rows(story, regions, config, isolated) -> torch.Tensor:
    """Which token may read which, (P·N, P·N), by the rule written out token by token."""
    drawn = draw_in_regions(regions, 0.5, False, random_stream(config.seed, story.key, 3, TOKENS))
    allowed = torch.zeros(story.panels, TOKENS, story.panels, TOKENS, dtype=torch.bool)
    for i, n, j, m in itertools.product(range(story.panels), range(TOKENS), range(story.panels), range(TOKENS)):
        mine, other = owner(i, int(regions[i, n])), owner(j, int(regions[j, m]))
        if i == j:
            allowed[i, n, j, m] = not (isolated and mine and other and mine != other)
        elif mine is None:
            together = config.regions == "characters+places" and PLACES[i] == PLACES[j] != ""
            allowed[i, n, j, m] = together and other is None and bool(drawn[i, j, m])
        else:
            allowed[i, n, j, m] = mine == other and bool(drawn[i, j, m])
    return allowed.flatten(2).flatten(0, 1)


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("regions_of", ["characters", "characters+places"])
@pytest.mark.parametrize("parts", [1, 2])
def test_attention_by_region_equals_a_dense_mask(regions_of, isolated, parts):
    story, regions = random_story()
    config = ConsistentSelfAttentionConfig(regions=regions_of)
    plan = batch_plan([select(story, regions, isolated=isolated, regions=regions_of)], [5], parts, TOKENS)
    assert plan is not None
    projections = torch.cat([random_projections(5, seed) for seed in range(parts)], 1)
    mask = allowed_rows(story, regions, config, isolated)
    expected = []
    for part in range(parts):
        q, k, v = (
            x.flatten(0, 1).unflatten(-1, (HEADS, -1)).transpose(0, 1) for x in projections[:, 5 * part :][:, :5]
        )
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
        expected.append((scores.softmax(-1) @ v).transpose(0, 1).flatten(1).unflatten(0, (5, TOKENS)))
    torch.testing.assert_close(attend(*projections, plan, HEADS), torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_a_plan_beside_a_plain_story_leaves_that_story_plain():
    story, regions = random_story()
    plan = batch_plan([select(story, regions), []], [5, 2], 1, TOKENS)
    assert plan is not None
    projections = random_projections(7)
    plain = batch_plan([select(PanelGroup(5), None, regions="off"), []], [5, 2], 1, TOKENS)
    assert plain is not None
    torch.testing.assert_close(attend(*projections, plan, HEADS)[5:], attend(*projections, plain, HEADS)[5:])


def test_without_others_or_at_rate_0_nothing_is_planned():
    story, regions = random_story(panels=1)
    assert batch_plan([select(story, regions)], [1], 2, TOKENS) is None
    story, regions = random_story()
    assert batch_plan([select(story, regions, rate=0.0)], [5], 2, TOKENS) is None


def test_reach_and_may_share_bound_the_regions():
    story, regions = random_story()
    story.may_share = ~torch.eye(5, dtype=torch.bool).flip(0)
    for each in select(story, regions, rate=1.0, neighbor_window=3, regions="characters+places"):
        read = set((each.rows // TOKENS).tolist()) - {each.panel}
        assert all(abs(each.panel - other) <= 3 for other in read)
        assert each.readers is not None
        if regions[each.panel, each.readers[0]] > 0:
            assert 4 - each.panel not in read


def test_places_count_among_the_panels_that_are_read():
    story, _ = random_story()
    story.may_share = torch.zeros(5, 5, dtype=torch.bool)
    read = get_read_panels(ConsistentSelfAttentionConfig(regions="characters+places"), [story])
    assert read.nonzero().tolist() == [[0, 2], [0, 4], [2, 0], [2, 4], [4, 0], [4, 2]]
    assert not get_read_panels(ConsistentSelfAttentionConfig(regions="characters"), [story]).any()


def test_some_panels_of_a_story_draw_their_regions_as_in_the_whole():
    story, regions = random_story()
    whole = {(each.panel, int(regions[each.panel, each.readers[0]])): each for each in select(story, regions)}
    kept = [0, 1, 3, 4]  # the others name no character
    some = PanelGroup(4, characters=[CAST[panel] for panel in kept], views=view_panels(5, kept))
    for each in select(some, regions[kept]):
        same = whole[kept[each.panel], int(regions[kept[each.panel], each.readers[0]])]
        assert torch.equal(each.readers, same.readers)
        panels = torch.tensor(kept)[each.rows // TOKENS]
        assert torch.equal(panels * TOKENS + each.rows % TOKENS, same.rows)


def test_the_largest_map_over_its_mean_is_the_region():
    maps = torch.zeros(2, 3, 4, 4)
    maps[:, 0] = 8.0  # the start token draws most attention everywhere, and must not win everywhere
    maps[:, 1, :, :2], maps[:, 1, :, 2:] = 0.3, 0.1
    maps[0, 2, :, 2:], maps[0, 2, :, :2] = 0.02, 0.001
    regions = find_regions(maps, 8, 8).unflatten(1, (8, 8))
    assert (regions[0, :, :3] == 1).all()
    assert (regions[0, :, 5:] == 2).all()
    assert (regions[1, :, 5:] == 0).all()
    assert find_regions(maps, 2, 2).tolist() == [[1, 2, 1, 2], [1, 0, 1, 0]]


def test_words_are_found_once_each_the_longest_first():
    text = "A girl in red and a girl meet a girl in red's dog"
    found = find_words(text, {"Ann": "a girl", "Bea": "a girl in red", "Cid": "a boy", "Dog": "dog"})
    assert {name: [text[start:end] for start, end in spans] for name, spans in found.items()} == {
        "Ann": ["a girl"], "Bea": ["A girl in red", "a girl in red"], "Dog": ["dog"],
    }  # fmt: skip
    assert find_tokens(text, found["Ann"], lambda part: len(part.split())) == [5, 6]
    assert find_words("a catalogue", {"Cat": "cat"}) == {}
    with pytest.raises(UserError, match="Ann and Bea have the same words 'A girl'"):
        find_words(text, {"Ann": "a girl", "Bea": "A girl"})


def generate(pipe, config=None, stories=None, characters=("fox", "cat"), panels=range(4), **changes):
    given = arguments(panels, **changes)
    given["prompt"] = [WORDS[panel] for panel in panels]
    with consistent_self_attention(pipe, config, stories, characters=characters) as story:
        return pipe(**given, callback_on_step_end=story.on_step_end).images


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_every_pipeline_shares_by_region_two_stories_at_once_as_alone(any_pipe, guidance):
    pipe, extra = any_pipe
    config = ConsistentSelfAttentionConfig(**BY_REGION, isolate_until=0.8)

    def generate_stories(panels, stories, config=config):
        more = extra(panels, guidance > 1)
        return generate(pipe, config, stories, panels=panels, guidance=guidance, steps=4, **more)

    before = processors(pipe)
    together = generate_stories(range(8), [PanelGroup(4, key=1), PanelGroup(4, key=2)])
    torch.testing.assert_close(together[:4], generate_stories(range(4), [PanelGroup(4, key=1)]), rtol=1e-3, atol=5e-4)
    alone = generate_stories(range(4, 8), [PanelGroup(4, key=2)])
    torch.testing.assert_close(together[4:], alone, rtol=1e-3, atol=5e-4)
    assert processors(pipe) == before
    with consistent_self_attention(pipe, ConsistentSelfAttentionConfig(blocks="all"), [4, 4]) as story:
        whole = arguments(range(8), guidance, 4) | {"prompt": WORDS} | extra(range(8), guidance > 1)
        as_whole = pipe(**whole, callback_on_step_end=story.on_step_end).images
    assert (together - as_whole).abs().amax((1, 2, 3)).max() > 1e-3


@pytest.mark.parametrize("settings", [{"rate": 0.0}, {"variant": "off"}, {"end": 0.1}])
def test_without_sharing_equals_the_plain_pipeline_bit_for_bit(sd_pipe, settings):
    plain = sd_pipe(**arguments() | {"prompt": WORDS[:4]}).images
    assert torch.equal(generate(sd_pipe, ConsistentSelfAttentionConfig(**BY_REGION, **settings)), plain)


def test_one_panel_equals_the_plain_pipeline_bit_for_bit(sd_pipe):
    plain = sd_pipe(**arguments(range(1)) | {"prompt": ["fox cat"]}).images
    with consistent_self_attention(
        sd_pipe, ConsistentSelfAttentionConfig(**BY_REGION), [1], characters=["fox", "cat"]
    ) as story:
        ours = sd_pipe(**arguments(range(1)) | {"prompt": ["fox cat"]}, callback_on_step_end=story.on_step_end).images
    assert torch.equal(ours, plain)


def test_the_first_tenth_of_the_steps_shares_as_without_regions(sd_pipe):
    kept: dict[str, list[torch.Tensor]] = {"off": [], "characters": []}
    for regions, latents in kept.items():
        config = ConsistentSelfAttentionConfig(regions=regions, blocks="all")
        words = ["fox", "cat"] if regions == "characters" else None
        with consistent_self_attention(sd_pipe, config, characters=words) as story:

            def keep(pipe, step, timestep, tensors, story=story, latents=latents):
                latents.append(tensors["latents"].clone())
                return story.on_step_end(pipe, step, timestep, tensors)

            sd_pipe(**arguments(steps=20) | {"prompt": WORDS[:4]}, callback_on_step_end=keep)
    equal = [torch.equal(one, other) for one, other in zip(*kept.values(), strict=True)]
    assert equal == [True, True, *[False] * 18]


def test_a_run_after_a_run_begins_anew_with_its_own_words(sd_pipe):
    config = ConsistentSelfAttentionConfig(**BY_REGION)
    first = generate(sd_pipe, config, panels=range(4, 8))
    with consistent_self_attention(sd_pipe, config, characters=["fox", "cat"]) as story:
        for panels in (range(4), range(4, 8)):
            given = arguments(panels) | {"prompt": [WORDS[panel] for panel in panels]}
            again = sd_pipe(**given, callback_on_step_end=story.on_step_end).images
    assert torch.equal(again, first)


@pytest.mark.parametrize(("first", "then"), [(5.0, 1.0), (1.0, 5.0)])
def test_regions_outlive_guidance_that_ends_or_begins_during_a_run(sd_pipe, first, then):
    """A callback that changes the guidance, and with it the parts of the batch, after step 3."""
    config, kept, found = ConsistentSelfAttentionConfig(**BY_REGION), [], []
    with consistent_self_attention(sd_pipe, config, characters=["fox", "cat"]) as story:

        def change(pipe, step, timestep, tensors):
            text = tensors["prompt_embeds"]
            if step == 3:
                pipe._guidance_scale = then
                text = text[len(text) // 2 :] if then == 1 else torch.cat([torch.zeros_like(text), text])
            tensors = {**story.on_step_end(pipe, step, timestep, tensors), "prompt_embeds": text}
            kept.append(story.recorder.get_regions(story.recorder.grid))
            return tensors

        hook = sd_pipe.unet.register_forward_pre_hook(
            lambda *call: found.append(story.recorder.get_regions(story.recorder.grid) if kept else None)
        )
        inputs = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
        images = sd_pipe(**arguments(guidance=first, steps=6) | {"prompt": WORDS[:4]}, **inputs).images
        hook.remove()
    assert images.isfinite().all()
    assert all(torch.equal(torch.cat(one), torch.cat(other)) for one, other in zip(kept, found[1:], strict=False))
    assert len(kept) == len(found) == 6


def test_regions_are_those_of_the_text_parts_cross_attention(sd_pipe):
    """The recorded maps against explicit products of all cross-attention layers of the recorded grid."""
    unet, seen = sd_pipe.unet, []

    def keep(attn, args, kwargs):
        hidden, text = args[0][-2:], kwargs["encoder_hidden_states"][-2:]
        q, k = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(hidden), attn.to_k(text)))
        seen.append(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)  # (2, heads, 256, 16)

    layers = [m for name, m in unet.named_modules() if name.startswith("up_blocks.1") and name.endswith("attn2")]
    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    story = PanelGroup(2, characters=[{"fox": [1], "cat": [2]}, {"fox": [1]}])
    config = ConsistentSelfAttentionConfig(**BY_REGION)
    with consistent_self_attention(sd_pipe, config, [story]) as state:
        sd_pipe(**arguments(range(2), steps=1), callback_on_step_end=state.on_step_end)
        assert state.recorder is not None
        found = state.recorder.get_regions(state.recorder.grid)[0]
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(layers) == 2
    maps = torch.zeros(2, 3, 256)
    for scores in seen:  # over the tokens of the panel's characters and the start token
        maps[0] += scores[0, ..., :3].softmax(-1).mean(0).T
        maps[1, :2] += scores[1, ..., :2].softmax(-1).mean(0).T
    relative = (maps / maps.mean(-1, keepdim=True)).nan_to_num(-1)
    assert (found == relative.argmax(1)).float().mean() > 0.99  # near ties may fall either way
    assert len(found.unique()) == 3


@pytest.mark.slow
@in_child
def test_a_compiled_denoiser_records_as_an_uncompiled_one(sd_pipe):
    config = ConsistentSelfAttentionConfig(**BY_REGION)
    plain = generate(sd_pipe, config)
    sd_pipe.unet.compile(backend="eager")
    torch.testing.assert_close(generate(sd_pipe, config), plain, rtol=1e-4, atol=1e-4)


def test_several_images_of_a_prompt_have_its_words(sd_pipe):
    given = arguments(range(4)) | {"prompt": ["fox", "cat"], "num_images_per_prompt": 2}
    with consistent_self_attention(
        sd_pipe, ConsistentSelfAttentionConfig(**BY_REGION), characters=["fox", "cat"]
    ) as story:
        sd_pipe(**given, callback_on_step_end=story.on_step_end)
        assert [list(each) for each in story._stories[0].characters or ()] == [["fox"], ["fox"], ["cat"], ["cat"]]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"regions": "people"}, "regions is 'people': choose one of off, characters, characters.places"),
        ({"regions": "characters", "panels_at_once": 2}, "panels_at_once is 2: leave out one"),
        ({"regions": "characters", "sampler": "progressive"}, "choose sampler uniform"),
        ({"regions": "characters", "variant": "algorithm1"}, "choose eq2 or shared_row or official"),
        ({"isolate_until": 0.5}, "isolate_until is 0.5, but regions is off"),
        ({"regions": "characters", "isolate_until": 2}, "isolate_until is 2"),
    ],
)
def test_settings_that_do_not_go_with_regions_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        ConsistentSelfAttentionConfig(**settings)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ({"characters": None}, "regions need the characters of each panel"),
        ({"characters": ["fox", "dog"]}, "no prompt has the words 'dog'"),
        ({"config": ConsistentSelfAttentionConfig()}, "characters are given, but regions is off"),
        (
            {"config": ConsistentSelfAttentionConfig(regions="characters+places")},
            "places are unknown: give PanelGroup",
        ),
        ({"prompt": None}, "give prompts instead of prompt_embeds"),
    ],
)
def test_unknown_characters_and_places_are_named(sd_pipe, call, named):
    call = {"config": ConsistentSelfAttentionConfig(**BY_REGION), "characters": ["fox", "cat"], **call}
    given = arguments() | {"prompt": WORDS[:4]}
    if "prompt" in call:
        given |= {
            "prompt": None,
            "prompt_embeds": torch.randn(4, 5, 16),
            "negative_prompt_embeds": torch.zeros(4, 5, 16),
        }
    with (
        pytest.raises(UserError, match=named),
        consistent_self_attention(sd_pipe, call["config"], characters=call["characters"]) as story,
    ):
        sd_pipe(**given, callback_on_step_end=story.on_step_end)


def test_words_beyond_the_text_encoder_are_named(sd_pipe):
    given = arguments(range(2)) | {"prompt": ["fox", "a very long and wordy fox"]}
    with (
        pytest.raises(UserError, match="end beyond the 16 tokens of the text encoder: shorten the prompt 'a very"),
        consistent_self_attention(sd_pipe, ConsistentSelfAttentionConfig(**BY_REGION), characters=["fox"]) as story,
    ):
        sd_pipe(**given, callback_on_step_end=story.on_step_end)


def test_the_callback_is_needed(sd_pipe):
    with (
        pytest.raises(UserError, match="regions"),
        consistent_self_attention(sd_pipe, ConsistentSelfAttentionConfig(**BY_REGION), characters=["fox"]),
    ):
        sd_pipe(**arguments() | {"prompt": WORDS[:4]})


def test_guidance_whose_text_part_is_unknown_is_named():
    pipe = StableDiffusionInstructPix2PixPipeline(unet=tiny_unet(in_channels=8), **common_parts(), **NO_SAFETY)
    given = {"prompt": ["fox", "fox"], "image": torch.rand(2, 3, 32, 32), "num_inference_steps": 2}
    with (
        pytest.raises(UserError, match="at most 2 guidance parts, text last, but there are 3"),
        consistent_self_attention(pipe, ConsistentSelfAttentionConfig(**BY_REGION), characters=["fox"]) as story,
    ):
        pipe(**given, callback_on_step_end=story.on_step_end)


@pytest.mark.parametrize("tokens", [[], [-1], [True], [1.0], ["fox"]])
def test_text_tokens_that_are_no_numbers_are_named(tokens):
    with pytest.raises(UserError, match=r"characters of panel 2 give fox the text tokens .*: give whole numbers, 0 or"):
        PanelGroup(2, characters=[{}, {"fox": tokens}])


def test_a_text_token_beyond_the_embeddings_is_named(sd_pipe):
    story = PanelGroup(2, characters=[{"fox": [1]}, {"fox": [1, 99]}])
    named = "characters of panel 2 name text token 99, but the embeddings of its prompt have the tokens 0 to 15"
    config = ConsistentSelfAttentionConfig(**BY_REGION)
    with pytest.raises(UserError, match=named), consistent_self_attention(sd_pipe, config, [story]) as state:
        sd_pipe(**arguments(range(2), steps=2), callback_on_step_end=state.on_step_end)


def test_references_are_within_reach_of_backgrounds_as_of_characters():
    story = PanelGroup(5, characters=CAST, places=["park"] * 5, references=1)
    config = ConsistentSelfAttentionConfig(regions="characters+places", neighbor_window=1)
    assert torch.equal(get_same_place(config, story), get_sources(config, story))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_without_a_callback_is_refused_where_regions_need_it(name):
    kind = getattr(diffusers, name)
    pipe = kind.__new__(kind)
    if name not in WITHOUT_CALLBACK:
        check_takes_callback(pipe)
        return
    with pytest.raises(UserError, match=rf"^{name} has no callback_on_step_end, so start, end, regions and variant"):
        check_takes_callback(pipe)


def test_a_pipeline_without_a_callback_is_named_before_its_call_for_regions_and_in_it_for_the_schedule():
    pipe, extra, _, _ = make("StableDiffusionSAGPipeline")
    named = "StableDiffusionSAGPipeline has no callback_on_step_end"
    with (
        pytest.raises(UserError, match=named),
        consistent_self_attention(pipe, ConsistentSelfAttentionConfig(**BY_REGION)),
    ):
        pass
    with (
        consistent_self_attention(pipe, ConsistentSelfAttentionConfig(start=0.5)),
        pytest.raises(UserError, match=named),
    ):
        pipe(**call_arguments(extra))


class PlainDecoder(torch.nn.Module):
    """A decoder of one layer, without a configuration that says how many levels it has."""

    def __init__(self) -> None:
        super().__init__()
        self.up_blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"attn2": torch.nn.Linear(1, 1)})])


def test_a_layer_of_unknown_grid_is_refused_by_name():
    with pytest.raises(UserError, match=r"PlainDecoder does not say that of up_blocks\.0\.attn2: leave out regions"):
        RegionRecorder(UNetBackbone(PlainDecoder()))

"""Sharing by region in diffusion transformers: recorded maps, a dense reference, guidance, and words of prompts."""

import math
from typing import Any, ClassVar

import pytest
import torch

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.attention.region_recorder import RegionRecorder
from storydiffusion.errors import UserError
from storydiffusion.models.prompt_encoding import find_span_tokens
from tests.attention.test_transformers import GUIDED, difference, plain
from tests.attention.transformers import FAMILIES, TEXT, TOKENS, WIDTH, dense_attention, flux, flux2, qwen_image
from tests.attention.transformers import stable_diffusion_3 as sd3

CAST = [{"fox": [0], "cat": [1, 2]}, {"cat": [0]}, {"cat": [2], "fox": [1]}, {}]
BY_REGION = ConsistentSelfAttentionConfig(rate=1.0, regions="characters", isolate_until=1.0)
JOINT = {"qwen_image": 2, "stable_diffusion_3": 2}
"""layers that are recorded, where not 1"""


def story(panels, key=0, **settings):
    return PanelGroup(len(panels), key=key, characters=[CAST[panel] for panel in panels], **settings)


def generate(family, stories, config=BY_REGION, panels=None, **changes):
    """Return the images and the recorder."""
    given = family.arguments(panels or [0, 1, 2, 3]) | {"num_inference_steps": 3} | changes
    with consistent_self_attention(family.pipe, config, stories) as state:
        images = family.pipe(**given, callback_on_step_end=state.on_step_end).images
    return images, state.recorder


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_those_of_the_joint_attention_to_the_panels_own_text(name):
    """Against a softmax over all text, from the queries and keys that reach the kernel of the plain processor."""
    family, seen = FAMILIES[name](), []

    def keep(query, key, mask=None):
        if key.shape[1] > TOKENS:
            text = slice(0, TEXT) if family.first else slice(TOKENS, None)
            seen.append((query[:, family.first : family.first + TOKENS], key[:, text], mask))

    def dispatched(query, key, value, attn_mask=None, **options):
        keep(query, key, attn_mask)
        return kernel(query, key, value, attn_mask=attn_mask, **options)

    def of_torch(query, key, value, **options):
        keep(query.transpose(1, 2), key.transpose(1, 2))
        return kernel(query, key, value, **options)

    alone = [story([0, 1, 2, 3], may_share=torch.zeros(4, 4))]
    with pytest.MonkeyPatch.context() as patch:
        if family.module is None:
            kernel: Any = torch.nn.functional.scaled_dot_product_attention
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", of_torch)
        else:
            kernel = family.module.dispatch_attention_fn
            patch.setattr(family.module, "dispatch_attention_fn", dispatched)
        config = ConsistentSelfAttentionConfig(regions="characters")
        _, recorder = generate(family, alone, config, num_inference_steps=1)
    maps = torch.zeros(4, 3, TOKENS)
    layers = JOINT.get(name, 1)
    for query, key, mask in seen[:layers]:
        scores = torch.einsum("pnhd,pthd->phnt", query[-4:], key[-4:]) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, :, :TEXT], -math.inf)
        weights = scores.softmax(-1).mean(1) / layers
        for panel, cast in enumerate(CAST):
            for number, tokens in enumerate(cast.values(), start=1):
                maps[panel, number] += weights[panel, :, tokens].sum(-1)
            others = [token for token in range(TEXT) if not any(token in tokens for tokens in cast.values())]
            maps[panel, 0] += weights[panel, :, others].sum(-1)
    torch.testing.assert_close(recorder._maps, maps, rtol=0, atol=1e-5)


SHIFTS = {"flux": [0, 0, WIDTH], "kontext": [0, 0, WIDTH], "flux2": [10, 0, 0, 0], "klein": [10, 0, 0, 0]}
SHIFTS |= {"qwen_image": [0, 0, WIDTH]}


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_two_panels_at_rate_1_equal_a_dense_reference(name, isolated, monkeypatch):
    """With given regions; the first step shares as without them."""
    family = FAMILIES[name]()
    regions = torch.randint(3, (2, TOKENS), generator=torch.Generator().manual_seed(0)).clamp(
        max=torch.tensor([[2], [1]])
    )
    monkeypatch.setattr(RegionRecorder, "get_regions", lambda recorder, grid: [regions])
    config = ConsistentSelfAttentionConfig(rate=1.0, regions="characters", isolate_until=float(isolated))
    shared, _ = generate(family, [story([0, 1])], config, [0, 1])
    owners = [[([None, *CAST[panel]])[region] for region in regions[panel].tolist()] for panel in (0, 1)]
    steps = [0]

    def visible():
        may_read = torch.ones(2, TOKENS, 2 * TOKENS, dtype=torch.bool)
        for own in (0, 1) if steps[0] else ():
            for n, mine in enumerate(owners[own]):
                for m in range(TOKENS):
                    near, far = owners[own][m], owners[1 - own][m]
                    may_read[own, n, m] = not (isolated and mine and near and mine != near)
                    may_read[own, n, TOKENS + m] = mine is not None and mine == far
        return may_read

    def count(pipe, step, timestep, tensors):
        steps[0] = step + 1
        return tensors

    with dense_attention(family, SHIFTS.get(name), visible):
        dense = plain(family, [0, 1], num_inference_steps=3, callback_on_step_end=count)
    torch.testing.assert_close(shared, dense, rtol=0, atol=1e-5)
    whole, _ = generate(family, [story([0, 1])], ConsistentSelfAttentionConfig(rate=1.0), [0, 1])
    assert difference(shared, whole).min() > 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_two_stories_at_once_are_those_alone(name):
    family = FAMILIES[name]()
    first, second = story([0, 1], key=1), story([2, 3], key=2)
    together, _ = generate(family, [first, second])
    torch.testing.assert_close(together[:2], generate(family, [first], panels=[0, 1])[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together[2:], generate(family, [second], panels=[2, 3])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", GUIDED)
def test_the_call_for_negative_prompts_is_not_recorded(name):
    family = GUIDED[name]()
    _, recorder = generate(family, [story([0, 1, 2, 3])], num_inference_steps=1)
    _, guided = generate(family, [story([0, 1, 2, 3])], num_inference_steps=1, **family.negative([0, 1, 2, 3]))
    torch.testing.assert_close(guided._maps, recorder._maps, rtol=0, atol=1e-6)


def test_skip_layer_guidance_changes_the_parts_within_a_step():
    more = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    images, _ = generate(sd3(), [story([0, 1, 2, 3])], **more)
    assert images.isfinite().all()


@pytest.mark.parametrize("blocks", ["joint", "single"])
def test_layers_that_do_not_share_are_recorded_and_all_are_restored(blocks):
    family = flux(layers=3)
    before = dict(family.pipe.transformer.attn_processors)
    config = ConsistentSelfAttentionConfig(regions="characters", blocks=blocks)
    images, recorder = generate(family, [story([0, 1, 2, 3])], config)
    assert list(recorder.layers) == ["transformer_blocks.1.attn"]
    assert difference(images, plain(family, num_inference_steps=3)).min() > 1e-5
    assert all(processor is before[name] for name, processor in family.pipe.transformer.attn_processors.items())


def test_a_text_token_beyond_the_embeddings_is_named():
    with pytest.raises(UserError, match="panel 1 name text token 5, but the embeddings of its prompt have the"):
        generate(flux(), [PanelGroup(4, characters=[{"fox": [5]}, {}, {}, {}])])


class Words:
    """A tokenizer of whole words, with the start tokens and the end token of an encoder."""

    added_tokens_encoder: ClassVar = {}

    def __init__(self, starts: int = 0, length: int = 20) -> None:
        self.starts, self.model_max_length = starts, length

    def __call__(self, text, add_special_tokens=True, **options):
        words = [hash(word) for word in text.split()]
        return type("Encoded", (), {"input_ids": [*[1] * self.starts, *words, 2] if add_special_tokens else words})

    def tokenize(self, text):
        return text.split()


PROMPT = "a red fox waves to a cat"
TEMPLATE = {"prompt_template_encode": "you see {} ."}
SPANS = {"fox": [(2, 9)], "cat": [(19, 24)]}


@pytest.mark.parametrize(
    ("make", "parts", "first"),
    [
        (flux, {"tokenizer_2": Words()}, 0),
        (flux, {"tokenizer_2": Words(starts=1)}, 1),
        (sd3, {"tokenizer": Words(starts=1)}, 1),
        (qwen_image, {"tokenizer": Words(), **TEMPLATE, "prompt_template_encode_start_idx": 3}, 0),
        (qwen_image, {"tokenizer": Words(), **TEMPLATE, "prompt_template_encode_start_idx": 1}, 2),
    ],
)
def test_words_are_found_behind_start_tokens_and_templates(make, parts, first):
    pipe = make().pipe
    for name, part in parts.items():
        setattr(pipe, name, part)
    assert find_span_tokens(pipe, PROMPT, SPANS) == {"fox": [first + 1, first + 2], "cat": [first + 5, first + 6]}


def test_words_that_are_not_found_are_named():
    with pytest.raises(UserError, match=r"not found in prompts of Flux2Pipeline.*give PanelGroup\(characters=…\)"):
        find_span_tokens(flux2().pipe, PROMPT, SPANS)
    edit = qwen_image().pipe
    edit.processor = object()
    with pytest.raises(UserError, match="not found in prompts of QwenImagePipeline, whose text encoder reads them be"):
        find_span_tokens(edit, PROMPT, SPANS)
    short = flux().pipe
    short.tokenizer_2 = Words(length=7)
    with pytest.raises(UserError, match="the words of 'cat' end beyond the 7 tokens of the text encoder"):
        find_span_tokens(short, PROMPT, SPANS)

"""Each edition draws, describes and labels its images through one interface."""

import pickle

import numpy as np
import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import join_prompts, words
from storydiffusion.storyworld.edition import EDITIONS, get_edition

every_edition = pytest.mark.parametrize("edition", EDITIONS.values(), ids=lambda edition: f"edition {edition.number}")


@every_edition
def test_images_have_labels_of_known_values_and_captions_of_known_words(edition):
    known = set(edition.vocabulary())
    for index in range(60):
        truth = edition.sample(3, index)
        labels = edition.get_labels(truth)
        assert labels.keys() == edition.labels.keys()
        assert all(value is None or value in edition.labels[name] for name, value in labels.items())
        member = edition.sample_pair_member(3, index)
        pair = join_prompts(edition.draw_pair_prompts(truth, member, index)).text
        texts = edition.caption(truth, index), edition.full_caption(truth), pair
        for text in texts:
            assert set(words(text)) <= known
            assert len(words(text)) + 2 <= edition.max_tokens


@every_edition
def test_rendering_repeats_at_any_size(edition):
    truth = edition.sample(3, 1)
    for size in (64, 128):
        image = edition.render(truth, size)
        assert image.shape == (size, size, 3)
        assert np.array_equal(image, edition.render(truth, size))


@every_edition
def test_full_captions_tell_apart_what_labels_tell_apart(edition):
    truths = [edition.sample(4, index) for index in range(300)]
    texts = {edition.full_caption(truth): tuple(edition.get_labels(truth).values()) for truth in truths}
    assert len(texts) == len({tuple(edition.get_labels(truth).values()) for truth in truths})


@every_edition
def test_a_family_shares_what_is_not_attire(edition):
    family = [edition.get_labels(edition.sample_relative(5, index, 4)) for index in range(4)]
    same = {name for name in edition.labels if len({labels[name] for labels in family}) == 1}
    assert {"place", "object"} <= same
    assert {name for name in edition.labels if name.split("_")[0] in ("kind", "action")} <= same


@every_edition
def test_a_prompt_has_a_clause_about_each_character(edition):
    for index in range(200):
        truth, member = edition.sample_pair_member(3, 2 * index), edition.sample_pair_member(3, 2 * index + 1)
        for shown in (truth, member):
            looks = edition.get_looks(shown)
            assert (
                len(edition.draw_prompt(shown, index).clauses)
                == len(looks)
                == len(edition.get_positions(shown)[: len(looks)])
            )
        assert set(edition.get_looks(member)) <= set(edition.get_looks(truth))
        pair = edition.draw_pair_prompts(truth, member, index)
        joined = join_prompts(pair)
        apart = [each.text[start:end] for each in pair for start, end in each.clauses]
        assert [joined.text[start:end] for start, end in joined.clauses] == apart


def test_pair_members_of_both_editions_start_with_the_worlds_own_truth():
    for edition in EDITIONS.values():
        assert [edition.sample_pair_member(5, k) for k in (0, 2, 4)] == [edition.sample(5, k) for k in (0, 2, 4)]


def test_an_unknown_edition_is_refused():
    with pytest.raises(UserError, match="edition=3 is unknown: choose one of 1, 2"):
        get_edition(3)


@every_edition
def test_editions_survive_pickling(edition):
    """A checkpoint and the loader's processes pickle what a training is made of."""
    assert pickle.loads(pickle.dumps(edition)) == edition

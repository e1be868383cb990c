import itertools

import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import (
    ATTIRE,
    PLACE_WORDS,
    THIRD_PERSON,
    WORDINGS,
    caption,
    describe,
    vocabulary,
    words,
)
from storydiffusion.storyworld.truth import WITH_HAIR, Truth, sample_truth

EVERYTHING = (*ATTIRE, "object")


def phrase(truth: Truth, name: str, named: tuple[str, ...]) -> str | None:
    """Return the words that a caption must contain when `name` is named, or None if there are none."""
    if name in ("shirt", "pattern"):
        return " ".join([getattr(truth, part) for part in ("shirt", "pattern") if part in named] + ["shirt"])
    return {
        "tone": f"{truth.tone} {'skin' if truth.kind in WITH_HAIR else truth.kind}",
        "hair": truth.hair and f"{truth.hair} hair",
        "bottom": f"{truth.bottom} {'skirt' if truth.kind == 'girl' else 'pants'}",
        "hat": f"{truth.hat_color} {truth.hat}" if truth.hat_color else "hat",
        "accessory": None if truth.accessory == "none" else truth.accessory,
    }[name]


SIGNS = {
    "tone": ("light", "tan", "dark", "skin"),
    "hair": ("hair", "blonde"),
    "shirt": ("orange", "pink", "white"),
    "pattern": ("plain", "striped", "dotted"),
    "bottom": ("skirt", "pants"),
    "hat": ("hat", "cap", "tophat", "beanie", "crown"),
    "accessory": ("glasses", "scarf", "bowtie"),
}


def subsets():
    return [named for size in range(len(ATTIRE) + 1) for named in itertools.combinations(ATTIRE, size)]


@pytest.mark.parametrize("wording", range(len(WORDINGS)))
def test_captions_contain_named_attire_and_omit_the_rest(wording):
    for index, named in enumerate(subsets()):
        truth = sample_truth(11, 100 * wording + index)
        text = describe(truth, named, wording)
        used = words(text)
        for name in named:
            expected = phrase(truth, name, named)
            assert expected is None or expected in text, (name, text)
        for name in set(ATTIRE) - set(named):
            assert not set(SIGNS[name]) & set(used), (name, text)
        if not {"shirt", "pattern"} & set(named):
            assert "shirt" not in used


@pytest.mark.parametrize("wording", range(len(WORDINGS)))
def test_captions_contain_kind_action_place_and_a_named_object(wording):
    for index in range(60):
        truth = sample_truth(12, index)
        for named in ((), EVERYTHING):
            text = describe(truth, named, wording)
            assert truth.kind in words(text)
            assert truth.action in text or THIRD_PERSON[truth.action] in text
            assert PLACE_WORDS[truth.place] in text
            assert (truth.object in words(text)) == ("object" in named and truth.object != "none")


def test_examples():
    truth = sample_truth(
        0,
        0,
        kind="girl",
        tone="tan",
        hair="brown",
        shirt="red",
        pattern="striped",
        bottom="blue",
        hat="cap",
        hat_color="green",
        accessory="glasses",
        action="waving",
        place="park",
        object="ball",
    )
    assert describe(truth, ()) == "a girl is waving in the park"
    assert describe(truth, EVERYTHING) == (
        "a girl with tan skin and brown hair in a red striped shirt, a blue skirt, a green cap and glasses "
        "is waving in the park beside a ball"
    )
    assert describe(truth, ("shirt",), 1) == "in the park, a girl wearing a red shirt waves"
    assert describe(truth, ("pattern",), 2) == "a girl is waving in the park, wearing a striped shirt"
    bare = sample_truth(0, 0, kind="cat", shirt="orange", hat="none", action="reading", place="beach")
    assert describe(bare, ("shirt", "hat")) == "a cat in an orange shirt without a hat is reading on the beach"
    assert describe(bare, ("hat",), 4) == "a cat wearing no hat reads a book on the beach"


def test_random_captions_stay_in_the_vocabulary_and_short():
    known = set(vocabulary())
    for index in range(3000):
        text = caption(sample_truth(13, index), index)
        used = words(text)
        assert set(used) <= known
        assert len(used) <= 46
        assert "".join(used) == text.replace(" ", "")


def test_the_longest_captions_are_short_enough():
    for index in range(200):
        for wording in range(len(WORDINGS)):
            assert len(words(describe(sample_truth(14, index), EVERYTHING, wording))) <= 46


def test_vocabulary_is_sorted_and_every_word_is_used():
    entries = vocabulary()
    assert list(entries) == sorted(set(entries))
    used = {word for index in range(4000) for word in words(caption(sample_truth(15, index), index))}
    assert used == set(entries)


def test_captions_repeat_and_vary_with_the_seed():
    truth = sample_truth(0, 5)
    assert caption(truth, 3) == caption(truth, 3)
    assert len({caption(truth, seed) for seed in range(200)}) > 50


def test_attire_is_named_at_its_probability():
    truth = sample_truth(0, 0, pattern="striped")
    share = sum("striped" in caption(truth, seed) for seed in range(2000)) / 2000
    assert 0.51 < share < 0.59


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"cannot name shoes.*tone, hair"):
        describe(sample_truth(0, 0), ("shoes",))

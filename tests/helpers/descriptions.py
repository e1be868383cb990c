"""What the words of each character in a caption must be, word by word."""

from collections.abc import Mapping, Sequence

from storydiffusion.storyworld.captions import PLACE_WORDS, THIRD_PERSON, words
from storydiffusion.storyworld.scene import split_label
from storydiffusion.storyworld.scene_captions import MOOD_WORDS, SIDE_WORDS
from storydiffusion.storyworld.truth import ATTRIBUTES, LOOKS

JOINING = {
    "a",
    "an",
    "in",
    "wearing",
    "with",
    "and",
    ",",
    "shirt",
    "pants",
    "skirt",
    "skin",
    "hair",
    "no",
    "without",
    "hat",
}
OTHER = {"is", "in", "and", "next", "to", "beside", "a", "an", ",", "book"}


def check_description(text: str, stated: Mapping[str, str], described: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Check that the spans have every word for kind and looks, once each, and that no such word is outside of them."""
    rest = list(text)
    for slot, spans in enumerate(described, start=1):
        labels = {split_label(label): value for label, value in stated.items()}
        looks = {name: value for (name, of), value in labels.items() if of in (0, slot) and name in LOOKS}
        said = [word for start, end in spans for word in words(text[start:end])]
        values = [word for name, value in looks.items() if value != "none" for word in words(value)]
        assert sorted(word for word in said if word not in JOINING) == sorted(values)
        assert ("hat" in said) == (looks.get("hat") == "none")
        for start, end in spans:
            assert text[start:end].strip(" ,") == text[start:end] != ""
            assert set(rest[start:end]) != {"\0"}, "no two spans overlap"
            rest[start:end] = "\0" * (end - start)
    left = set(words("".join(rest).replace("\0", " ")))
    scene = [*THIRD_PERSON, *THIRD_PERSON.values(), *PLACE_WORDS.values(), *SIDE_WORDS.values(), *ATTRIBUTES["object"]]
    scene += [word for each in MOOD_WORDS.values() for word in each]
    assert left <= {word for phrase in scene for word in words(phrase)} | OTHER

"""Reading an idea: what its words mean in each language."""

import pytest

from storydiffusion.writer.idea import read_idea
from storydiffusion.writer.languages import LANGUAGES, detect_language, load_lexicon
from storydiffusion.writer.targets import StoryWorldTarget

VALUES = StoryWorldTarget(2).values

SAME_IDEA = {
    "en": "a brown bear called Otto with a red cap looks for his ball in the forest",
    "de": "ein brauner Bär namens Otto mit roter Kappe sucht seinen Ball im Wald",
    "es": "un oso marrón llamado Otto con una gorra roja busca su pelota en el bosque",
    "fr": "un ours brun appelé Otto avec une casquette rouge cherche sa balle dans la forêt",
}


def read(idea: str, language: str = "en"):
    return read_idea(idea, load_lexicon(language), VALUES)


@pytest.mark.parametrize("language", SAME_IDEA)
def test_an_idea_is_read_alike_in_four_languages(language):
    reading = read(SAME_IDEA[language], language)
    (bear,) = reading.characters
    assert bear.kind == "bear"
    assert bear.name == "Otto"
    assert bear.looks == {"tone": "brown", "hat": "cap", "hat_color": "red"}
    assert (reading.places, reading.objects) == (("forest",), ("ball",))
    assert reading.plots["lost"] >= 1
    assert reading.unknown == ()


def test_chinese_is_read_without_spaces():
    reading = read("一只叫小白的兔子戴着红色的帽子，在森林里找皮球", "zh")
    (rabbit,) = reading.characters
    assert (rabbit.kind, rabbit.name) == ("rabbit", "小白")
    assert rabbit.looks == {"hat": "cap", "hat_color": "red"}
    assert (reading.places, reading.objects) == (("forest",), ("ball",))


def test_clothes_go_to_the_character_named_last():
    reading = read("a girl in a blue shirt and a cat in a green hat")
    girl, cat = reading.characters
    assert girl.looks == {"shirt": "blue"}
    assert cat.looks == {"hat": "cap", "hat_color": "green"}


def test_a_colour_that_is_not_drawn_is_unknown():
    reading = read("a purple bear in a turquoise shirt")
    assert set(reading.unknown) == {"purple", "turquoise", "shirt"}
    assert reading.characters[0].looks == {}


def test_a_kind_is_one_character_however_often_it_is_named():
    assert len(read("a cat and another cat, and the cat's cat").characters) == 1


@pytest.mark.parametrize(("idea", "gender"), [("a robot and her ball", "f"), ("he is a cat", "m"), ("a robot", "")])
def test_pronouns_say_the_gender(idea, gender):
    assert read(idea).gender == gender


def test_names_are_capitalized_words_that_the_lexicon_does_not_know():
    assert read("Mia meets Tom in the park").names == ("Mia", "Tom")
    assert read("Der Zauberer heißt Merlin", "de").names == ("Merlin",)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_value_of_the_world_has_a_word_in_every_language(language):
    lexicon = load_lexicon(language)
    for category, name in (("kind", "kind"), ("place", "place"), ("action", "action"), ("object", "object")):
        assert set(VALUES[name]) - {"none"} == set(lexicon.values(category))


@pytest.mark.parametrize(
    ("text", "language"),
    [(text, language) for language, text in SAME_IDEA.items()]
    + [
        ("小猫在公园里", "zh"),
        ("ネコが公園で", None),
        ("Кот ищет друга", None),
        ("고양이", None),
        ("kissa etsii palloa", None),
    ],
)
def test_the_language_of_an_idea_is_found(text, language):
    assert detect_language(text) == language

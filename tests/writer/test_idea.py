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
    assert reading.plots["lost"]
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


def test_a_kind_is_one_character_however_often_it_is_named_unless_the_names_differ():
    assert len(read("a cat and another cat, and the cat's cat").characters) == 1
    assert named("a cat called Tom and a cat called Ruby") == [("cat", "Tom"), ("cat", "Ruby")]
    assert named("a cat called Tom plays, and the cat Tom sleeps") == [("cat", "Tom")]


@pytest.mark.parametrize(
    ("idea", "language"),
    [("two rabbits", "en"), ("zwei Hasen", "de"), ("dos conejos", "es"), ("deux lapins", "fr"), ("两只兔子", "zh")],
)
def test_two_of_a_kind_are_two_characters(idea, language):
    assert named(idea, language) == [("rabbit", ""), ("rabbit", "")]


@pytest.mark.parametrize(("idea", "gender"), [("a robot and her ball", "f"), ("he is a cat", "m"), ("a robot", "")])
def test_pronouns_say_the_gender(idea, gender):
    assert read(idea).gender == gender


def named(idea: str, language: str = "en", is_prose: bool = False) -> list[tuple[str, str]]:
    """Return kind and name of the characters of an idea; the kind of a person known by name alone is empty."""
    reading = read_idea(idea, load_lexicon(language), VALUES, is_prose)
    return [(each.other or each.kind, each.name) for each in reading.characters]


def test_names_are_capitalized_words_that_the_lexicon_does_not_know():
    assert named("Mia meets Tom in the park") == [("", "Mia"), ("", "Tom")]
    assert named("Der Zauberer heißt Merlin", "de") == [("man", "Merlin")]


@pytest.mark.parametrize(
    ("idea", "language"),
    [
        ("a cat called Anna", "en"), ("a small cat whose name is Anna", "en"), ("Anna the cat", "en"),
        ("Anna, a small cat,", "en"), ("Anna is a cat", "en"), ("the cat Anna", "en"),
        ("eine Katze namens Anna", "de"), ("Anna, eine kleine Katze", "de"), ("die Katze Anna", "de"),
        ("una gata llamada Anna", "es"), ("Anna, la gata", "es"), ("Anna es una gata", "es"),
        ("une chatte appelée Anna", "fr"), ("Anna, la chatte", "fr"), ("la chatte Anna", "fr"),
    ],
)  # fmt: skip
def test_a_name_belongs_to_a_kind_where_the_grammar_says_so(idea, language):
    assert named(idea, language) == [("cat", "Anna")]


@pytest.mark.parametrize(
    ("idea", "language"),
    [
        ("a cat meets Anna", "en"), ("a cat and Anna", "en"), ("Der Kater trifft Anna", "de"),
        ("un gato conoce a Anna", "es"), ("un chat rencontre Anna", "fr"),
    ],
)  # fmt: skip
def test_any_other_name_is_a_person(idea, language):
    assert named(idea, language) == [("cat", ""), ("", "Anna")]


def test_chinese_names_belong_to_the_kind_beside_them():
    assert named("一只叫小白的兔子和一只猫", "zh") == [("rabbit", "小白"), ("cat", "")]
    assert named("小猫叫咪咪，小熊叫团团", "zh") == [("cat", "咪咪"), ("bear", "团团")]


def test_a_speaker_of_prose_is_a_person_and_not_the_kind_beside():
    text = "“Where is my ball?” asked the cat. “I do not know!” cried Anna."
    assert named(text, is_prose=True) == [("cat", ""), ("", "Anna")]


def test_a_nameless_girl_of_prose_is_the_person_who_is_named_later():
    assert named("A girl lived in the forest. Mia read a book.", is_prose=True) == [("girl", "Mia")]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The bear did not run.", "en"), ("The bear never ran.", "en"), ("The bear didn't run.", "en"),
        ("Der Bär rannte nicht.", "de"), ("Der Bär will nicht rennen.", "de"), ("El oso no corrió.", "es"),
        ("L'ours ne court pas.", "fr"), ("小熊没有跑。", "zh"),
    ],
)  # fmt: skip
def test_what_is_negated_does_not_happen(text, language):
    reading = read_idea(text, load_lexicon(language), VALUES, is_prose=True)
    assert reading.actions == ()
    assert named(text, language, is_prose=True) == [("bear", "")]


def test_a_negation_ends_with_its_clause_and_two_cancel():
    assert read("not in the park but in the forest").places == ("forest",)
    assert read("it did not rain, the bear ran").actions == ("running",)
    assert read("a bear who never goes anywhere without a ball").objects == ("ball",)


def test_what_is_negated_suggests_no_plot_and_no_emotion_but_its_opposite():
    assert read("a cat who is never sad").feelings == {}
    assert read("a cat who is sad").feelings == {"sadness": ["sad"]}
    assert read("a cat shares a ball").plots.keys() == {"friend"}
    assert read("a cat does not want to share a ball").plots.keys() == {"quarrel"}


@pytest.mark.parametrize(
    ("idea", "language"),
    [("a dog", "en"), ("ein Hund", "de"), ("un perro", "es"), ("un chien", "fr"), ("一只狗", "zh")],
)
def test_characters_that_are_not_drawn_are_known(idea, language):
    reading = read(idea, language)
    assert [each.other for each in reading.characters] == ["dog"]
    assert len(reading.not_drawn) == 1
    assert (reading.drawn, reading.unknown) == ((), ())


def test_a_kind_of_the_other_edition_is_not_drawn():
    reading = read_idea("a fox", load_lexicon("en"), StoryWorldTarget(1).values)
    assert (reading.not_drawn, reading.unknown) == (("fox",), ())


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
        ("un gatto perde la palla nel parco", None),
        ("Un gatto trova un amico", None),
        ("um gato perde a bola no parque", None),
        ("een kat zoekt een vriend in het bos", None),
        ("en katt letar efter en boll i skogen", None),
        ("kot szuka przyjaciela w lesie", None),
        ("Mia", "en"),
        ("Mia and Tom", "en"),
    ],
)
def test_the_language_of_an_idea_is_found(text, language):
    assert detect_language(text) == language

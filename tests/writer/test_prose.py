"""Splitting prose: captions are the text, sentence by sentence, and prompts follow its words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storydiffusion.errors import UserError
from storydiffusion.story import panel_prompts
from storydiffusion.story.emotions import EMOTIONS
from storydiffusion.storyworld.scene_captions import MOOD_WORDS
from storydiffusion.writer.rules import RulesWriter
from storydiffusion.writer.sentences import group_sentences, split_sentences
from storydiffusion.writer.targets import FreeTarget, StoryWorldTarget
from tests.writer.briefs import TARGETS, brief

TEXT = """A small cat called Nell lived in the forest. Every day she read a book.

One day she ran to the beach! There stood a bear with a ball. “Hello,” said the bear. They jumped until night came."""


def write(text=TEXT, **changes):
    return RulesWriter().write(brief(idea="", text=text, **changes))


def test_captions_are_the_sentences_in_order():
    story = write(panels=4).story
    assert " ".join(panel.caption for panel in story.panels) == " ".join(TEXT.split())


def test_prompts_follow_the_words_and_places_last_until_another_is_named():
    story = write(panels=6).story
    prompts = [panel.prompt for panel in story.panels]
    assert prompts[0].startswith("[Nell] is standing in the forest")
    assert prompts[1] == "[Nell] is reading in the forest"
    assert prompts[2] == "[Nell] is running on the beach"
    assert "on the beach beside a ball" in prompts[3]
    assert story.characters[0].name == "Nell"
    assert "bear in a" in panel_prompts(story)[3].prompt


def test_words_that_begin_a_sentence_are_no_names():
    german = (
        """Ein kleiner Bär lebte im Wald. Dort las er jeden Morgen ein Buch. „Willst du spielen?“, fragte eine Katze."""
    )
    assert {each.name for each in write(german, panels=3).story.characters}.isdisjoint({"Dort", "Willst"})
    english = "Once a cat met Ruby. Slowly she sat down. Then Ruby said that Monday was over, and Ruby ran."
    cat, ruby = write(english, panels=3).story.characters
    assert "cat" in cat.description
    assert ruby.name == "Ruby"


def test_chinese_prose_is_split_at_its_full_stops():
    text = "小猫在公园里跑。它看见一个气球！“你好，”小猫说。后来，它坐在雪地里。"
    story = write(text, panels=4).story
    assert [panel.caption for panel in story.panels][1] == "它看见一个气球！"
    assert "running in the park" in story.panels[0].prompt


def test_a_language_without_lexicon_is_said_and_still_split():
    draft = write("Кот пошёл в лес. Там он нашёл мяч. Потом пошёл снег.", panels=3)
    assert [panel.caption for panel in draft.story.panels][1] == "Там он нашёл мяч."
    (note,) = draft.notes
    assert "no words of the text's language" in note


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("عاش قط في الغابة. هل كان يقرأ كتابا؟ ذات يوم ركض إلى الشاطئ.", "؟"),  # Arabic
        ("एक बिल्ली जंगल में रहती थी। वह रोज़ किताब पढ़ती थी। एक दिन वह समुद्र तट पर दौड़ी।", "।"),  # Hindi
        ("猫が森に住んでいました。毎日本を読んでいました。ある日、海へ走りました。", "。"),  # Japanese
        ("고양이가 숲에 살았다. 매일 책을 읽었다. 어느 날 해변으로 달려갔다.", "."),  # Korean
        ("Bir kedi ormanda yaşardı. Her gün kitap okurdu. Bir gün sahile koştu.", "."),  # Turkish
        ("แมวตัวหนึ่งอาศัยอยู่ในป่า\n\nทุกวันมันอ่านหนังสือ\n\nวันหนึ่งมันวิ่งไป", "อ"),  # Thai, without full stops
    ],
)
def test_texts_in_any_script_are_split_and_said_to_be_unread(text, ends):
    draft = write(text, panels=3)
    assert " ".join(panel.caption for panel in draft.story.panels).split() == text.replace("。", "。 ").split()
    assert any(ends in panel.caption for panel in draft.story.panels)
    (note,) = draft.notes
    assert "no words of the text's language" in note
    assert "writer=chat reads any language" in note


def test_a_text_without_a_character_that_the_model_draws_says_which_one_is_shown():
    draft = write("The train left. It was late. Then it rained.", panels=3)
    (note,) = draft.notes
    assert note.endswith(f"so the images show {draft.story.characters[0].description}")
    assert write(panels=3).notes == ()


def test_a_text_is_not_translated_which_is_said():
    draft = write(panels=3, language="de")
    assert draft.story == write(panels=3).story
    assert "language=de" in draft.notes[0]
    assert write(panels=3, language="en").notes == ()


def test_too_few_sentences_and_too_long_captions_are_refused():
    with pytest.raises(UserError, match="2 sentences, fewer than panels=3: pass panels=2"):
        write("One. Two.", panels=3)
    with pytest.raises(UserError, match="more panels"):
        write("The cat sat in the park and sang. " * 300, panels=3)


SPLIT = (
    ["Mr. Fox met Dr. J. Bear.", "They danced."],
    ["Prof. Bear came at 3 p.m. in the rain, e.g. yesterday.", "It was No. 5 of 3.14."],
    ["“No.”", "She ran at 3 p.m.", "Anna slept."],
    ["“Where is my ball?” asked the cat.", "“I do not know!” cried Anna.", "It rained."],
    ["“Hello. I am Tom,” said Tom.", "“Hello!” Anna said.", "“Oh!”", "The cat ran."],
    ["Am 3. Mai kam z. B. Anna.", "Er war 3.", "Dann ging er mit Katzen, Hunden usw. fort."],
    ["„Ja?“, fragte sie.", "„Los!“"],
    ["—¿Dónde está? —preguntó el gato.", "—¡Aquí! —dijo Ana.", "El Sr. Oso corrió."],
    ["« Te voilà ! » dit Anna.", "« Oui, M. Ours. »", "Elle rit."],
    ["“你好！”小猫说。", "后来，它坐在雪地里。", "“谁？”猫头鹰问，“谁？谁？”"],
    ["„Komm!“, rief sie.", "»Nein …«, sagte er.", "Eins … zwei … drei."],
    ["\"Stop!\" cried Tom.", "\"Why?\"", "She ran."],
    ["a text in small letters.", "it has two sentences."],
)  # fmt: skip


@pytest.mark.parametrize("sentences", SPLIT, ids=lambda sentences: sentences[0])
def test_speech_abbreviations_ordinals_and_numbers_do_not_end_a_sentence(sentences):
    assert split_sentences(("" if "。" in sentences[0] else " ").join(sentences)) == sentences


@given(
    parts=st.lists(
        st.sampled_from(["“", "”", '"', "«", "A", "b", ". ", "! ", "?”", "Mr. ", "3. ", "\n\n", "。"]), max_size=30
    )
)
def test_no_character_of_a_text_is_lost(parts):
    text = "".join(parts)
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


ALL = "A cat ran. “Stop!” cried Anna. The bear did not jump. A dog came. The cat sat in the park. Anna read a book."


def test_a_speaker_is_shown_and_what_is_negated_is_not():
    story = write(ALL, panels=6).story
    shown = [panel.prompt.partition("]")[2] for panel in story.panels]
    assert story.panels[1].characters == ("Anna",)
    assert panel_prompts(story)[1].prompt.startswith("a girl")
    assert shown[2].startswith(" is standing")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_characters_that_are_not_drawn_are_named_even_beside_others(target):
    notes = write(ALL, panels=6, target=target).notes
    assert any("dog" in note and "robot" in note for note in notes)


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_an_emotion_appears_step_by_step_in_the_images_of_a_text(emotion):
    plain = [panel.prompt for panel in write(ALL, panels=6, target=FreeTarget()).story.panels]
    draft = write(ALL, panels=6, target=FreeTarget(), emotion=emotion)
    prompts = [panel.prompt for panel in draft.story.panels]
    elements = [each for every in FreeTarget().elements(emotion).values() for each in every if " " in each]
    first = {number: each for each in elements for number in reversed(range(6)) if each in prompts[number]}
    assert prompts[0] == plain[0]
    assert len(first) > 1
    moods = [panel.prompt for panel in write(ALL, panels=6, target=StoryWorldTarget(2), emotion=emotion).story.panels]
    assert [MOOD_WORDS[emotion][0] in prompt for prompt in moods] == [False, *[True] * 5]


def test_an_emotion_that_the_model_cannot_draw_is_said():
    assert any("emotion=sadness changes nothing" in note for note in write(panels=3, emotion="sadness").notes)
    assert write(panels=3, emotion="sadness", target=StoryWorldTarget(2)).notes == ()


@given(sentences=st.lists(st.text(min_size=1, max_size=50), min_size=1, max_size=40), data=st.data())
def test_groups_keep_every_sentence_in_order_and_none_is_empty(sentences, data):
    count = data.draw(st.integers(1, len(sentences)))
    groups = group_sentences(sentences, count)
    assert len(groups) == count
    assert all(groups)
    assert [sentence for group in groups for sentence in group] == sentences


def test_two_characters_share_an_image_where_the_model_draws_two():
    story = write(
        "A cat and a bear ran in the park. The cat sat. The bear sat.", panels=3, target=StoryWorldTarget(2)
    ).story
    assert [len(panel.characters) for panel in story.panels] == [2, 1, 1]

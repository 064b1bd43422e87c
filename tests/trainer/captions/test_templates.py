"""A caption names what should stay changeable and leaves out what is learned."""
from __future__ import annotations

import pytest

from hotlora.trainer.captions.models import Said, Tag
from hotlora.trainer.captions.templates import compose
from hotlora.trainer.captions.vocabulary import FILE, ROLES, own_section, read_vocabulary


@pytest.mark.parametrize("sentence, person, thing, style", [
    ("a young woman with long brown hair sitting on a bench in a park", "sks, sitting on a bench in a park", "sks, sitting on a bench in a park",
     "sks, a young woman with long brown hair sitting on a bench in a park"),
    ("a man in a suit and tie standing in front of a building", "sks, in a suit and tie standing in front of a building",
     "sks, in a suit and tie standing in front of a building", "sks, a man in a suit and tie standing in front of a building"),
    ("a red backpack sitting on a wooden chair", "sks, a red backpack sitting on a wooden chair", "sks, sitting on a wooden chair",
     "sks, a red backpack sitting on a wooden chair"),
    ("a watercolor painting of a cat sleeping on a red sofa", "sks, a cat sleeping on a red sofa", "sks, sleeping on a red sofa",
     "sks, a cat sleeping on a red sofa"),
    ("a black and white photo of a woman smiling at the camera", "sks, smiling at the camera", "sks, smiling at the camera", "sks, a woman smiling at the camera"),
    ("a drawing of a castle in the style of van gogh", "sks, a castle in the style of van gogh", "sks, in the style of van gogh", "sks, a castle"),
    ("an anime girl with blue eyes and pink hair standing in the rain", "sks, standing in the rain", "sks, standing in the rain",
     "sks, a girl with blue eyes and pink hair standing in the rain"),
    ("a mug with a face on it sitting on a table", "sks, a mug sitting on a table", "sks, sitting on a table", "sks, a mug with a face on it sitting on a table"),
    ("two women and a man standing next to each other", "sks, two women standing next to each other", "sks, standing next to each other",
     "sks, two women and a man standing next to each other"),
    ("a red ring", "sks, a red ring", "sks", "sks, a red ring")])
def test_sentences_by_purpose(sentence: str, person: str, thing: str, style: str) -> None:
    assert [compose(Said(sentence), purpose, "sks") for purpose in ("person", "object", "style")] == [person, thing, style]
    assert compose(Said(sentence), "any", "sks") == f"sks, {sentence}"


def test_the_word_for_what_is_learned_is_left_out() -> None:
    assert compose(Said("a small brown dog laying on a bed next to a cat"), "object", "sks", "dog") == "sks, laying on a bed next to a cat"
    assert compose(Said("", (Tag("dog", "general", 1.0), Tag("dogs", "general", 1.0), Tag("grass", "general", 0.5))), "any", "", "dog") == "grass"


def test_tags_by_purpose() -> None:
    tags = tuple(Tag(text, kind, 0.9) for text, kind in (
        ("1girl", "general"), ("long hair", "general"), ("blue eyes", "general"), ("smile", "general"), ("outdoors", "general"), ("monochrome", "general"),
        ("an oil painting", "media"), ("a woman", "subject"), ("window light", "lighting")))
    sections = read_vocabulary()
    assert compose(Said(tags=tags), "person", "sks", sections=sections) == "sks, smile, outdoors, monochrome, an oil painting, window light"
    assert compose(Said(tags=tags), "style", "sks", sections=sections) == "sks, 1girl, long hair, blue eyes, smile, outdoors, a woman, window light"
    assert compose(Said(tags=tags), "any", "", sections=sections, most_tags=2) == "1girl, long hair"


def test_what_the_sentence_says_is_not_said_twice() -> None:
    said = Said("a dog on a beach at sunset", (Tag("a beach", "place", 0.9), Tag("sunset", "own", 0.9), Tag("waves", "own", 0.5)))
    assert compose(said, "any", "sks") == "sks, a dog on a beach at sunset, waves"
    assert compose(Said("sks on a beach"), "any", "sks") == "sks on a beach"
    assert compose(Said(), "any", "") == ""


def test_the_vocabulary_that_ships() -> None:
    sections = {section.name: section for section in read_vocabulary()}
    assert {"media", "style", "lighting", "framing", "subject", "colour"} <= set(sections) and sum(len(s.phrases) for s in sections.values()) > 400
    assert all(section.role in ROLES for section in sections.values())
    phrases = [phrase for section in sections.values() for phrase in section.phrases]
    assert len(set(phrases)) == len(phrases) and FILE.is_file()


def test_own_lists(tmp_path) -> None:
    path = tmp_path / "my.txt"
    path.write_text("red circle, blue square\nred circle\n# a remark\n穿红衣\n", encoding="utf-8")
    (section,) = read_vocabulary(path)
    assert section.phrases == ("red circle", "blue square", "穿红衣") and section == own_section(list(section.phrases))
    for text, words in (("[a]\nx", "line 1: a section must look like"), ("[a | b | 1 | 0.3]\nx", "style or content or trait"), ("", "is empty")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_vocabulary(path)
    with pytest.raises(ValueError, match="cannot be opened"):
        read_vocabulary(tmp_path / "gone.txt")

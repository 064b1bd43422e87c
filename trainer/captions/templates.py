"""From what a model says to the caption that is trained: the trigger word first, and without what the trigger word is to stand for.

What a caption names stays changeable, and what it leaves out goes into the trigger word. So a person's or an object's caption says nothing
about its looks, and a style's caption describes the content and not the style.
"""
from __future__ import annotations

import re

from .models import Said
from .sidecar import tidy
from .vocabulary import Section
from ..gallery import add_trigger

PERSON = r"(?:woman|man|girl|boy|lady|guy|gentleman|person|child|kid|toddler|baby|teenager|male|female|model|bride|groom)"
ADJECTIVE = r"(?:[a-z]+(?:-[a-z]+)*\s+)"
SUBJECT_PERSON = re.compile(rf"\b(?:(?:a|an|the|one|this|that)\s+){ADJECTIVE}{{0,4}}?{PERSON}\b(?!'s)(?:\s+figure)?", re.IGNORECASE)
LOOKS = re.compile(
    r"(?:,?\s*\b(?:with|and|has|having)\s+)(?:(?:a|an|her|his|their|very)\s+)?(?:[a-z]+(?:-[a-z]+)*\s+){0,4}"
    r"(?:hair|hairs|haircut|hairstyle|eyes?|eyebrows?|beard|mustache|moustache|goatee|freckles|skin|lips|nose|face|braids?|bangs|ponytails?|"
    r"pigtails|dreadlocks|curls|wrinkles|complexion|cheeks?|ears?|tail|fur|horns?)\b", re.IGNORECASE)
BOUNDARY = (r"(?:in|on|at|under|over|above|below|behind|beside|near|by|against|inside|outside|between|among|through|next|during|while|is|are|was|"
            r"that|which|wearing|(?!(?:king|ring|wing|thing|string|spring|building|painting|ceiling|clothing|earring|wedding|evening|morning)\b)[a-z]{2,}ing)")
NOT_OF_ITS_OWN = re.compile(r"\b(?:on|in|around|over|to)\s+(?:it|its\b[^,]*|them|him|her|top of it)\b", re.IGNORECASE)
MEDIUM = (r"(?:photo(?:graph)?|picture|image|snapshot|shot|portrait|painting|drawing|sketch|illustration|artwork|art|render(?:ing)?|print|"
          r"watercolor|watercolour|cartoon|comic|manga|anime|poster|engraving|etching|woodcut|collage|mosaic|sculpture|doodle|graphic|design|screenshot|"
          r"mural|fresco|oil|acrylic|ink|pencil|charcoal|pastel|pixel|digital|vector|3d|cgi)")
OPENING = re.compile(rf"^(?:(?:this is|there is|it is)\s+)?(?:(?:a|an|the)\s+)?(?:[a-z0-9]+(?:[-\s](?:and\s+)?[a-z0-9]+){{0,4}}?[\s-]+)??{MEDIUM}(?:\s+{MEDIUM})*"
                     r"(?:\s+style)?\s+(?:of|showing|depicting|featuring)\s+", re.IGNORECASE)
STYLED = re.compile(r"\b(?:a|an)\s+(?:anime|cartoon|manga|comic|pixel art|chibi|3d|cgi|watercolor|painted|drawn|sketched|stylized|abstract)\s+", re.IGNORECASE)
STYLE_TAIL = re.compile(r",?\s*(?:drawn |painted |rendered |done )?(?:in|with)\s+(?:(?:the|a|an)\s+)?(?:[\w'-]+\s+){0,4}?style(?:\s+of\s+[^,]+)?|"
                        r",?\s*\b(?:by|inspired by)\s+[A-Z][\w.'-]*(?:\s+[A-Z][\w.'-]*)*", re.IGNORECASE)
STYLE_TAG = re.compile(rf"\b(?:{MEDIUM}|style|styled|monochrome|greyscale|grayscale|sepia|lineart|line art|cel shad\w+|shading|traditional media|"
                       r"impressionis\w+|surreal\w+|realis\w+|photorealis\w+|abstract|minimalis\w+|retro|vintage|chibi|sketchy|painterly|brushstrokes?|"
                       r"official|parody|medium|texture)\b", re.IGNORECASE)
TRAIT_TAG = re.compile(
    r"\b(?:hair|eyes?|eyebrows?|eyelashes|pupils?|bangs|ponytail|twintails|braids?|ahoge|sidelocks|bun|bob cut|beard|mustache|facial|freckles|mole|"
    r"skin\w*|lips|breasts?|muscular|tail|horns?|animal ears|\w+ ears|fangs?|wings|elf|halo|scar|tattoo|age|1girl|1boy|girls?|boys?|woman|women|man|men|"
    r"person|female|male)\b", re.IGNORECASE)


def compose(said: Said, purpose: str = "any", trigger: str = "", subject: str = "", sections: list[Section] | None = None,
            most_tags: int = 20) -> str:
    """The caption of a picture from what a model says. `subject` is the word for what is learned, such as dog; empty when nothing is left to say
    and there is no trigger."""
    roles = {section.name: section.role for section in sections or []}
    sentence = _sentence(said.sentence, purpose, subject)
    tags = [tag for tag in said.tags if _keeps(tag.text, roles.get(tag.kind, "content"), purpose, subject)]
    if said.sentence:
        # what the sentence says already is not said twice
        tags = [tag for tag in tags if not _said(tag.text, sentence)]
    parts = [sentence, *(tag.text for tag in tags[:most_tags])]
    text = tidy(", ".join(dict.fromkeys(part for part in parts if part)))
    return add_trigger(text, tidy(trigger))


def _sentence(text: str, purpose: str, subject: str) -> str:
    text = re.sub(r"^there (?:is|are)\s+", "", text.strip().rstrip("."), flags=re.IGNORECASE)
    if not text or purpose == "any":
        return text
    if purpose == "style":
        text = STYLE_TAIL.sub("", _without_opening(text))
        return STYLED.sub("a ", text).strip(" ,")
    text = _without_opening(text)
    if purpose in ("person", "character"):
        text = LOOKS.sub("", text)
        text = SUBJECT_PERSON.sub("", text, count=1)
    elif subject:
        text = re.sub(rf"\b(?:(?:a|an|the|one|this)\s+)?{ADJECTIVE}{{0,4}}?{re.escape(subject)}s?\b", "", text, count=1, flags=re.IGNORECASE)
        text = LOOKS.sub("", text)
    else:
        text = _without_first_thing(text)
    text = NOT_OF_ITS_OWN.sub("", text)
    text = re.sub(r"^(?:\s*(?:,|\b(?:is|are|was|who|that|which)\b))+\s*", "", text)
    text = re.sub(rf"\band\s+(?={BOUNDARY}\b)", "", text)
    text = re.sub(r"^\s*and\s+", "with ", text.strip(), flags=re.IGNORECASE)
    return " ".join(text.split()).strip(" ,")


def _without_opening(text: str) -> str:
    previous = None
    while previous != text:
        previous, text = text, OPENING.sub("", text, count=1)
    return text


def _without_first_thing(text: str) -> str:
    """From the first place or doing on: "a red mug with a face on a table" is "on a table"."""
    text = NOT_OF_ITS_OWN.sub("", text)
    # a word beside the article belongs to the thing: a smiling woman
    head = re.match(r"(?:(?:a|an|the|one|two|three)\s+)?[\w-]+\s*", text, re.IGNORECASE)
    found = re.compile(rf"\b{BOUNDARY}\b", re.IGNORECASE).search(text, head.end() if head else 0)
    return text[found.start():] if found else ""


def _keeps(tag: str, role: str, purpose: str, subject: str) -> bool:
    if subject and re.search(rf"\b{re.escape(subject)}s?\b", tag, re.IGNORECASE):
        return False
    if purpose == "style":
        return role != "style" and not STYLE_TAG.search(tag)
    if purpose in ("person", "character"):
        return role != "trait" and not TRAIT_TAG.search(tag)
    return not (purpose == "object" and role == "trait")


def _said(tag: str, sentence: str) -> bool:
    words = re.sub(r"^(?:a|an|the)\s+", "", tag.lower())
    return bool(re.search(rf"\b{re.escape(words)}\b", sentence.lower()))

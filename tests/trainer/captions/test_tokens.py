"""Our count of CLIP's tokens is the tokenizer's own."""
from __future__ import annotations

import pytest

from hotlora.trainer.captions.tokens import LIMIT, count_tokens, cut_at
from hotlora.trainer.hosts.parts import clip_tokenizer

TEXTS = ["", "a cat", "A photo of SKS, masterpiece, 8k!!", "it's the dog's ball, don't", "naïve café über", "一只黑色的猫坐在窗台上", "1girl, >_<, blue_eyes, (white:1.2)",
         "supercalifragilisticexpialidocious", "🐈 cat", "a--b  c\td", "x" * 200, "12345 67"]


@pytest.mark.parametrize("text", TEXTS)
def test_as_the_tokenizer(text: str) -> None:
    assert count_tokens(text) == len(clip_tokenizer()(text)["input_ids"]) - 2


def test_where_it_is_cut() -> None:
    text = ", ".join(f"word{chr(97 + i)}" for i in range(26))
    read = cut_at(text, 40)
    assert text.startswith(read) and count_tokens(read) <= 40 < count_tokens(text[:len(read) + 8])
    assert cut_at("a cat") is None and cut_at("cat " * LIMIT) is None and cut_at("cat " * (LIMIT + 1)) == ("cat " * LIMIT).strip()

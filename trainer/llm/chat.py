"""How a record becomes one text, and which parts of that text are answers."""
from __future__ import annotations

from dataclasses import dataclass, replace
from os.path import commonprefix
from pathlib import Path
from typing import Any, Iterable, Sequence

from .records import Message, Record

FIRST_TOKEN = "{{- bos_token -}}\n"
ALPACA = """{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content.strip() + '\n\n' }}
{%- elif message.role == 'assistant' -%}{{ message.content.strip() + eos_token }}{% if not loop.last %}{{ '\n\n' }}{% endif %}
{%- else -%}{{ '### Instruction:\n' + message.content.strip() + '\n\n### Response:\n' }}{%- endif -%}
{%- endfor -%}"""
"""The headings of Stanford Alpaca, which instruction-tuned LLaMA models know."""
PLAIN = """{%- for message in messages -%}
{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor -%}"""
BUILT_IN = {"alpaca": ALPACA, "plain": PLAIN}


@dataclass(frozen=True)
class Rendered:
    """One text and the character ranges [begin, end) in it that are answers to learn, and those of answers with a weight of 0."""

    text: str
    answers: tuple[tuple[int, int], ...]
    not_learned: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Question:
    """What a model is asked, after the text of `system` where there is one."""

    text: str
    system: str = ""


def choose_template(tokenizer: Any, setting: str, records: Iterable[Record]) -> str | None:
    """Give the tokenizer the template that `chat_template` asks for, and return its name; None when all records are plain text.

    "auto" is the model's own, else headings for conversations and instructions, and prompt and completion as they are. ValueError
    for a file that cannot be used.
    """
    kinds = {record.kind for record in records} - {"text"}
    if not kinds and setting == "auto":
        return None
    if setting == "auto" and tokenizer.chat_template:
        return "the model's own"
    name = ("plain" if kinds == {"prompt"} else "alpaca") if setting == "auto" else setting
    if name in BUILT_IN:
        template = BUILT_IN[name]
        # a template writes all special tokens itself: the first token only where the tokenizer would
        adds_first = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = FIRST_TOKEN + template if adds_first else template
        return name
    try:
        tokenizer.chat_template = Path(setting).read_text(encoding="utf-8")
        render(tokenizer, ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"chat_template is {setting}, which cannot be read ({error}); give a Jinja file, or auto") from None
    except ValueError as error:
        raise ValueError(f"chat_template is {setting}, which cannot be used: {error}") from None
    return setting


def render(tokenizer: Any, messages: Sequence[Message], for_answer: bool = False, tools: Sequence[dict[str, Any]] = ()) -> str:
    """Messages by the tokenizer's template; `for_answer` ends where the assistant's next answer begins.

    A template that knows no system role (Gemma's) gets it put before the first message of the user. ValueError when the template
    does not take the conversation.
    """
    from jinja2 import TemplateError

    try:
        shown = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        return tokenizer.apply_chat_template(shown, tools=list(tools) or None, tokenize=False, add_generation_prompt=for_answer)
    except (TemplateError, TypeError, KeyError) as error:
        if messages[0]["role"] == "system" and len(messages) > 1:
            system, first, *rest = messages
            return render(tokenizer, [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest], for_answer, tools)
        raise ValueError(f"the chat template does not take this conversation ({str(error).strip()}); change the order of its messages, or set "
                         "chat_template: alpaca") from None


def render_record(tokenizer: Any, record: Record) -> Rendered:
    """The whole text of a conversation, and its answers with the token that ends each of them; ValueError when they cannot be found in it."""
    if _is_plain(tokenizer):
        record = _spaces_moved(record)
    whole = render(tokenizer, record.messages, tools=record.tools)
    _check_shown(tokenizer, record, whole)
    answers, not_learned, position = [], [], 0
    for number, message in enumerate(record.messages):
        if message["role"] != "assistant" or number < record.learned_from:
            continue
        begin, end = _ends_of(tokenizer, record, number, whole, position)
        (answers if record.is_learned(number) else not_learned).append((begin, end))
        position = end
    return Rendered(whole, tuple(answers), tuple(not_learned))


def _check_shown(tokenizer: Any, record: Record, whole: str) -> None:
    """ValueError for a template that knows no tools: the text is the same without them."""
    bare = tuple({key: value for key, value in message.items() if key != "tool_calls"} for message in record.messages)
    for what, other in (("tool_calls", replace(record, messages=bare)), ("tools", replace(record, tools=()))):
        if other == record:
            continue
        try:
            is_shown = render(tokenizer, other.messages, tools=other.tools) != whole
        except ValueError:  # without them it is no conversation
            is_shown = True
        if not is_shown:
            raise ValueError(f"the chat template leaves out its {what}; set chat_template to a Jinja file that shows them, or remove the record")


def _ends_of(tokenizer: Any, record: Record, number: int, whole: str, position: int) -> tuple[int, int]:
    """Where the answer `record.messages[number]` begins and ends in the whole text, from `position` on."""
    messages = record.messages
    before = render(tokenizer, messages[:number], for_answer=True, tools=record.tools)
    after = render(tokenizer, messages[: number + 1], tools=record.tools)
    content = messages[number]["content"].strip()
    if whole.startswith(before) and len(before) >= position:
        begin = len(before)
    else:  # templates may show earlier turns in another way, or put something before an answer
        begin = whole.find(content, max(position, _end_of_question(tokenizer, record, number, before, whole, position)))
        if begin < 0:
            raise ValueError("the chat template changes the answer, so it cannot be told from the question; set chat_template: alpaca")
    if whole.startswith(after.rstrip()) and len(after.rstrip()) > begin:
        return begin, len(after.rstrip()) if len(whole) > len(after) else len(whole)
    end = begin + len(content)
    eos = tokenizer.eos_token or ""
    if "tool_calls" in messages[number]:  # which a template writes in its own way
        end = whole.find(eos, end) if eos else -1
        if end < 0:
            raise ValueError("the chat template shows its tool calls in another way when more follows, so that their end cannot be told; remove the record")
    return begin, end + len(eos) if whole.startswith(eos, end) else end


def _end_of_question(tokenizer: Any, record: Record, number: int, before: str, whole: str, position: int) -> int:
    """Where to look for an answer from, as the question and the words that head an answer may hold its words as well. `before` asks for it."""
    asked, content = record.messages[:number], record.messages[number]["content"].strip()
    shown = render(tokenizer, asked, tools=record.tools)
    end_there = end_here = len(shown)
    if not whole.startswith(shown):
        question = asked[-1]["content"].strip()
        found = whole.find(question, position)
        if found < 0:
            return position
        end_here = _next_sign(whole, found + len(question))
        end_there = _next_sign(before, shown.rfind(question) + len(question))
    heading = commonprefix([before[end_there:], whole[end_here:]])  # without what only an answer that is yet to come is headed with
    shared = next((length for length in range(min(len(heading), len(content)), 0, -1) if heading.endswith(content[:length])), 0)
    return end_here + len(heading) - shared


def _next_sign(text: str, place: int) -> int:
    """The first place from `place` on that is no white space."""
    return len(text) - len(text[place:].lstrip())


def _spaces_moved(record: Record) -> Record:
    """Spaces at the end of a prompt go to the front of its completion, as tokens take them with the word that follows."""
    messages = [dict(message) for message in record.messages]
    for first, second in zip(messages, messages[1:]):
        if second["role"] == "assistant":
            kept = first["content"].rstrip(" ")
            second["content"] = first["content"][len(kept):] + second["content"]
            first["content"] = kept
    return replace(record, messages=tuple(messages))


def prompt_text(tokenizer: Any, asked: Question) -> str:
    """What is put before an answer to the question: by the chat template, or its texts themselves where there is none."""
    if not tokenizer.chat_template:
        return f"{asked.system}\n\n{asked.text}" if asked.system else asked.text
    content = asked.text.rstrip(" ") if _is_plain(tokenizer) else asked.text
    system = ({"role": "system", "content": asked.system},) if asked.system else ()
    return render(tokenizer, (*system, {"role": "user", "content": content}), for_answer=True)


def _is_plain(tokenizer: Any) -> bool:
    return tokenizer.chat_template.endswith(PLAIN)

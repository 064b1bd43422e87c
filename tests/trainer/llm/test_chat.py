"""From a record to a text by a chat template, and which characters of it are answers; templates are written in the manner of the families'."""
from __future__ import annotations

from dataclasses import replace

import pytest

from hotlora.trainer.llm.chat import Question, choose_template, prompt_text, render_record
from hotlora.trainer.llm.records import Record
from hotlora.trainer.llm.tokens import tokenize

LLAMA3 = ("{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim "
          "+ '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}")
CHATML = ("{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endfor %}"
          "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}")
QWEN3 = ("{%- for message in messages %}{%- set content = message.content %}{%- if message.role == 'assistant' and loop.last %}"
         "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content + '<|im_end|>\n' }}{%- else %}"
         "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
         "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}")
MISTRAL = ("{{- bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}"
           "{%- elif message.role == 'assistant' %}{{- ' ' + message.content + eos_token }}{%- endif %}{%- endfor %}")
GEMMA = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
         "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
         "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
         "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
R1 = ("{{- bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}{{- '<|User|>' + message.content }}"
      "{%- elif message.role == 'assistant' %}{{- '<|Assistant|>' + message.content.split('</think>')[-1] + '</s>' }}{%- endif %}{%- endfor %}"
      "{%- if add_generation_prompt %}{{- '<|Assistant|><think>\n' }}{%- endif %}")
QWEN3_THINKING = QWEN3.replace("{{- '<|im_start|>assistant\n' }}", "{{- '<|im_start|>assistant\n<think>\n' }}")
SHORTENED = R1.replace("'<|User|>' + message.content", "'<|User|>' + (message.content if loop.last else message.content | trim)")
TOOLS = ("{%- if tools %}{{- '<|im_start|>system\n' }}{%- for tool in tools %}{{- tool | tojson + '\n' }}{%- endfor %}{{- eos_token + '\n' }}{%- endif %}"
         "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}{%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}"
         "{%- endif %}{{- message.content }}{%- for call in message.tool_calls or [] %}{{- '<tool_call>' + call.function.name + call.function.arguments | tojson "
         "+ '</tool_call>' }}{%- endfor %}{{- eos_token + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}")
"""Calls in the manner of Qwen3, which puts an empty thought before the last answer only."""
CALLED = Record("a.jsonl, line 1", "messages", (
    {"role": "user", "content": "How warm?"}, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "warmth", "arguments": {"at": "Rome"}}}]},
    {"role": "tool", "content": "21"}, {"role": "assistant", "content": "21 degrees."}), tools=({"type": "function", "function": {"name": "warmth"}},))
TWO_TURNS = (("user", "Who?"), ("assistant", "Ann."), ("user", "Where?"), ("assistant", "In Rome."))


def record(*pairs, learned_from=0):
    return Record("a.jsonl, line 1", "messages", tuple({"role": role, "content": content} for role, content in pairs), learned_from=learned_from)


@pytest.fixture
def tokenizer(base, tokenizer_of):
    return tokenizer_of(base)


def answers(tokenizer, what):
    rendered = render_record(tokenizer, what)
    return [rendered.text[begin:end] for begin, end in rendered.answers]


@pytest.mark.parametrize("template, expected", [
    (LLAMA3, ["Ann.<|eot_id|>", "In Rome.<|eot_id|>"]),
    (CHATML, ["Ann.<|im_end|>", "In Rome.<|im_end|>"]),
    (MISTRAL, [" Ann.</s>", " In Rome.</s>"]),
    (GEMMA, ["Ann.<end_of_turn>", "In Rome.<end_of_turn>"]),
])
def test_answers_are_found_with_the_token_that_ends_them(tokenizer, template, expected):
    tokenizer.chat_template = template
    assert [text.rstrip() for text in answers(tokenizer, record(*TWO_TURNS))] == expected


def test_a_template_that_shows_earlier_answers_in_another_way(tokenizer):
    """Qwen3 puts an empty thought before the last answer only."""
    tokenizer.chat_template = QWEN3
    first, last = answers(tokenizer, record(*TWO_TURNS))
    assert first.startswith("Ann.") and last.rstrip().endswith("In Rome.<|im_end|>")
    assert "Where" not in first and "Where" not in last


def test_answers_before_the_one_to_learn_do_not_count(tokenizer):
    tokenizer.chat_template = CHATML
    assert [text.rstrip() for text in answers(tokenizer, record(*TWO_TURNS, learned_from=3))] == ["In Rome.<|im_end|>"]


def test_an_answer_of_weight_0_is_shown_and_not_learned(tokenizer):
    tokenizer.chat_template = CHATML
    messages = record(*TWO_TURNS).messages
    rendered = render_record(tokenizer, Record("a", "messages", ({**messages[0]}, {**messages[1], "weight": 0}, *messages[2:])))
    assert rendered.text == render_record(tokenizer, record(*TWO_TURNS)).text and "weight" not in rendered.text
    assert [[rendered.text[first:last].rstrip() for first, last in ranges] for ranges in (rendered.answers, rendered.not_learned)] == [
        ["In Rome.<|im_end|>"], ["Ann.<|im_end|>"]]


def test_tool_calls_are_answers_as_the_template_writes_them(tokenizer):
    tokenizer.chat_template = TOOLS
    assert [text.rstrip() for text in answers(tokenizer, CALLED)] == ['<tool_call>warmth{"at": "Rome"}</tool_call></s>', "<think>\n\n</think>\n\n21 degrees.</s>"]
    text = render_record(tokenizer, CALLED).text
    assert text.startswith('<|im_start|>system\n{"type": "function", "function": {"name": "warmth"}}') and "<|im_start|>tool\n21</s>" in text


@pytest.mark.parametrize("template, what, expected", [
    (CHATML, CALLED, "the chat template leaves out its tool_calls; set chat_template to a Jinja file"),
    (CHATML, replace(record(*TWO_TURNS), tools=CALLED.tools), "the chat template leaves out its tools"),
    (TOOLS.replace("eos_token", "'<|im_end|>'"), CALLED, "shows its tool calls in another way when more follows"),
])
def test_a_template_that_does_not_take_tools_is_one_sentence(tokenizer, template, what, expected):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=expected):
        render_record(tokenizer, what)
    assert tokenize(tokenizer, [what], 1000).problems[0].startswith("a.jsonl, line 1: the chat template ")


def test_the_same_words_in_question_and_answer(tokenizer):
    tokenizer.chat_template = CHATML
    what = record(("user", "Say Ann."), ("assistant", "Ann."), ("user", "Ann."), ("assistant", "Ann."))
    rendered = render_record(tokenizer, what)
    assert [begin for begin, _ in rendered.answers] == [rendered.text.index("assistant\nAnn.") + 10, rendered.text.rindex("assistant\nAnn.") + 10]


@pytest.mark.parametrize("template", [R1, QWEN3_THINKING, SHORTENED])
def test_an_answer_that_the_question_or_the_heading_holds_is_not_taken_from_there(tokenizer, template):
    """Where an answer to come is headed by <think>, which the answer in a record is not."""
    tokenizer.chat_template = template
    what = record(("user", "Positive or negative? "), ("assistant", "negative"), ("user", "Letter A or s?"), ("assistant", "A"),
                  ("user", "Or <s>? "), ("assistant", "<s>"), ("user", "a, or s? "), ("assistant", "s"))
    rendered = render_record(tokenizer, what)
    found = [rendered.text[first:last].rstrip().removesuffix("<|im_end|>").removesuffix("</s>") for first, last in rendered.answers]
    assert [text.split("</think>\n\n")[-1] for text in found] == ["negative", "A", "<s>", "s"]
    heads = [rendered.text[:begin] for begin, _ in rendered.answers]
    assert all(head.endswith(("<|Assistant|>", "assistant\n", "assistant\n<think>\n")) for head in heads)


def test_a_system_message_goes_to_the_user_where_the_template_has_no_place_for_it(tokenizer):
    tokenizer.chat_template = GEMMA
    rendered = render_record(tokenizer, record(("system", "Be brief."), ("user", "Who?"), ("assistant", "Ann.")))
    assert rendered.text == "<s><start_of_turn>user\nBe brief.\n\nWho?<end_of_turn>\n<start_of_turn>model\nAnn.<end_of_turn>\n"


def test_a_conversation_that_the_template_refuses_is_one_sentence(tokenizer):
    tokenizer.chat_template = GEMMA
    with pytest.raises(ValueError, match="does not take this conversation .*must alternate.*set chat_template: alpaca"):
        render_record(tokenizer, record(("user", "a"), ("user", "b"), ("assistant", "c")))


def test_which_template_is_taken(tokenizer, tmp_path):
    own = tokenizer.chat_template
    asked, text = record(*TWO_TURNS), Record("a", "text", text="x")
    assert choose_template(tokenizer, "auto", [text]) is None
    assert choose_template(tokenizer, "auto", [asked]) == "the model's own" and tokenizer.chat_template == own
    tokenizer.chat_template = None
    assert choose_template(tokenizer, "auto", [asked]) == "alpaca"
    assert render_record(tokenizer, asked).text == ("<s>### Instruction:\nWho?\n\n### Response:\nAnn.</s>\n\n"
                                                    "### Instruction:\nWhere?\n\n### Response:\nIn Rome.</s>")
    assert answers(tokenizer, asked) == ["Ann.</s>", "In Rome.</s>"]
    tokenizer.chat_template = None
    assert choose_template(tokenizer, "auto", [Record("a", "prompt", asked.messages[:2])]) == "plain"
    file = tmp_path / "my.jinja"
    file.write_text(CHATML, encoding="utf-8")
    assert choose_template(tokenizer, str(file), [asked]) == str(file) and "im_start" in render_record(tokenizer, asked).text


def test_a_question_comes_after_its_system_text(tokenizer):
    tokenizer.chat_template = CHATML
    assert prompt_text(tokenizer, Question("Who?", "Be brief.")) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = None
    assert prompt_text(tokenizer, Question("Who?", "Be brief.")) == "Be brief.\n\nWho?"


@pytest.mark.parametrize("content, expected", [(None, "cannot be read"), ("{% if %}", "cannot be used"), (b"\xff\xfe\xff", "cannot be read")])
def test_a_template_that_cannot_be_used_is_one_sentence(tokenizer, tmp_path, content, expected):
    file = tmp_path / "my.jinja"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"chat_template is .*my.jinja, which {expected}"):
        choose_template(tokenizer, str(file), [record(*TWO_TURNS)])


def test_without_a_template_prompt_and_completion_stay_as_they_are(tokenizer):
    """The space goes to the word behind it, as tokens have it, in training as in answering."""
    tokenizer.chat_template = None
    asked = Record("a", "prompt", record(("user", "The sky is "), ("assistant", "blue.")).messages)
    choose_template(tokenizer, "auto", [asked])
    rendered = render_record(tokenizer, asked)
    assert rendered.text == "<s>The sky is blue.</s>" and answers(tokenizer, asked) == [" blue.</s>"]
    assert prompt_text(tokenizer, Question("The sky is ")) == "<s>The sky is"

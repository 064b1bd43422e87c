"""Tokens, labels and rows: what is learned of a record, and that samples of one row do not see each other."""
from __future__ import annotations

import pytest
import torch

from hotlora.trainer.llm.chat import choose_template
from hotlora.trainer.llm.model import load_base
from hotlora.trainer.llm.records import Record
from hotlora.trainer.llm.tokens import FILLER, NOT_COUNTED, Collator, Order, Rows, Sample, pack, tokenize


@pytest.fixture
def tokenizer(base, tokenizer_of):
    return tokenizer_of(base)


def asked(question="Where does Ana live?", answer="Rome"):
    return Record("a.jsonl, line 1", "prompt", ({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def learned(tokenizer, sample):
    return tokenizer.decode([label for label in sample.labels if label != NOT_COUNTED])


def test_the_answer_alone_is_learned_or_everything(tokenizer):
    sample, = tokenize(tokenizer, [asked()], 64).samples
    assert tokenizer.decode(sample.ids) == "<s>Question: Where does Ana live?\nAnswer: Rome</s>"
    assert learned(tokenizer, sample) == " Rome</s>" and sample.labels[-1] == tokenizer.eos_token_id
    sample, = tokenize(tokenizer, [asked()], 64, answer_only=False).samples
    assert sample.labels == sample.ids


def test_both_answers_of_two_turns_are_learned(tokenizer):
    both = Record("a", "messages", asked().messages + asked("Who?", "Ben").messages)
    sample, = tokenize(tokenizer, [both], 64).samples
    assert learned(tokenizer, sample) == " Rome</s> Ben</s>"


@pytest.mark.parametrize("answer_only", [True, False])
def test_nothing_of_an_answer_of_weight_0_is_learned(tokenizer, answer_only):
    question, answer = asked().messages
    record = Record("a", "messages", (question, {**answer, "weight": 0}, *asked("Who?", "Ben").messages))
    sample, = tokenize(tokenizer, [record], 64, answer_only).samples
    assert tokenizer.decode(sample.ids).count(" Rome</s>") == 1
    assert learned(tokenizer, sample) == (" Ben</s>" if answer_only else tokenizer.decode(sample.ids).replace(" Rome</s>", ""))


def test_text_is_learned_as_a_whole_with_its_end(tokenizer):
    sample, = tokenize(tokenizer, [Record("a", "text", text="Ana lives in Rome.")], 64).samples
    assert sample.labels == sample.ids and tokenizer.decode(sample.ids) == "<s>Ana lives in Rome.</s>"


def test_long_texts_are_split_and_long_conversations_cut_off(tokenizer):
    text = " ".join(f"word{number}" for number in range(60))
    found = tokenize(tokenizer, [Record("a", "text", text=text)], 16)
    assert [len(sample.ids) for sample in found.samples[:-1]] == [16] * (len(found.samples) - 1) and not found.cut
    assert tokenizer.decode([token for sample in found.samples for token in sample.ids]) == f"<s>{text}</s>"
    found = tokenize(tokenizer, [asked(answer=text)], 32)
    assert found.cut == 1 and len(found.samples[0].ids) == 32 and tokenizer.eos_token_id not in found.samples[0].ids


def test_a_question_that_leaves_no_room_for_its_answer_is_named(tokenizer):
    long = asked(question="why " * 50, answer="Rome " * 50)
    found = tokenize(tokenizer, [long, asked()], 32)
    assert len(found.samples) == 1
    question = [label != NOT_COUNTED for label in tokenize(tokenizer, [long], 1000).samples[0].labels].index(True)
    assert found.problems == [f"a.jsonl, line 1: the question alone has {question} tokens, which leaves no room for its answer; raise max_length (32)"]
    assert tokenize(tokenizer, [long], question).problems and not tokenize(tokenizer, [long], question + 1).problems


def test_packing_loses_nothing_and_fills_rows():
    samples = [Sample(list(range(size)), list(range(size))) for size in (5, 9, 3, 7, 2, 10, 1, 3)]
    rows = pack(samples, 10)
    assert sorted(len(sample.ids) for row in rows for sample in row) == sorted(len(sample.ids) for sample in samples)
    assert len(rows) == 4 and max(sum(len(sample.ids) for sample in row) for row in rows) <= 10


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_samples_of_one_row_do_not_see_each_other(base, tokenizer, implementation):
    """The logits of packed samples, and the loss, are those of the samples alone."""
    choose_template(tokenizer, "auto", [asked()])
    samples = tokenize(tokenizer, [asked(), asked("Who is Ben?", "Nobody"), asked("What?", "That"), asked("Who?", "Ann")], 64).samples
    model = load_base(base, torch.device("cpu"), torch.float32)
    model.set_attn_implementation(implementation)
    model.config.use_cache = False
    model.train()
    batch = Collator(2, True)([Rows([samples[:3]])[0], Rows([samples[3:]])[0]])
    assert "attention_mask" not in batch
    packed = model(**batch)
    begin = 0
    for sample in samples[:3]:
        alone = model(input_ids=torch.tensor([sample.ids])).logits[0]
        torch.testing.assert_close(packed.logits[0, begin: begin + len(sample.ids)], alone, rtol=1e-4, atol=1e-4)
        begin += len(sample.ids)
    single = Collator(2, False)([Rows([[sample]])[0] for sample in samples])
    assert packed.loss.item() == pytest.approx(model(**single).loss.item(), rel=1e-5)


def test_what_fills_a_row_up_does_not_count(base, tokenizer):
    samples = tokenize(tokenizer, [asked(), asked("Where does the elder brother of Ana live?", "Rome")], 64).samples
    batch = Collator(tokenizer.pad_token_id, False)([Rows([[sample]])[0] for sample in samples])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == NOT_COUNTED).all() and batch["attention_mask"].sum() == sum(len(s.ids) for s in samples)


def test_a_fingerprint_knows_order_ids_and_labels():
    one, two = Sample([1, 2], [1, 2]), Sample([1, 2], [NOT_COUNTED, 2])
    prints = {Rows(rows).fingerprint() for rows in ([[one], [two]], [[two], [one]], [[one, two]], [[one], [one]])}
    assert len(prints) == 4 and Rows([[one], [two]]).fingerprint() in prints


def test_a_last_step_that_is_not_full_is_filled_with_rows_of_which_nothing_counts():
    rows = Rows([[Sample([number, 7, 8], [number, 7, 8])] for number in range(23)])
    order, alone = Order(len(rows), 4, seed=3), Order(len(rows), 1, seed=3)
    assert len(order) == 24 and list(order) == [*alone, FILLER] and sorted(alone) == list(range(23))
    before = list(alone)
    alone.set_epoch(1)
    assert list(alone) != before == list(Order(23, 1, seed=3)), "each epoch has an order of its own, the same in every process"
    batch = Collator(0, True)([rows[2], rows[FILLER]])
    assert (batch["labels"][1] == NOT_COUNTED).all() and batch["input_ids"].shape == (2, 3)

"""Records from files: every form, every kind of file, and what cannot be used is named with its place."""
from __future__ import annotations

import json

import pytest

from hotlora.trainer.llm.records import Record, read_records


def messages(*pairs):
    return tuple({"role": role, "content": content} for role, content in pairs)


ASKED = messages(("user", "Who?"), ("assistant", "Ann."))


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize("record, kind, expected", [
    ({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]}, "messages", ASKED),
    ({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]}, "messages",
     messages(("system", "Be brief."), *((m["role"], m["content"]) for m in ASKED))),
    ({"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ann."}]}, "messages", ASKED),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]}, {"role": "assistant", "content": "Ann."}]},
     "messages", ASKED),
    ({"prompt": "Who?", "completion": "Ann."}, "prompt", ASKED),
    ({"prompt": "Who?", "completion": "Ann.", "source": 3}, "prompt", ASKED),
    ({"instruction": "Who?", "input": "", "output": "Ann."}, "instruction", ASKED),
    ({"instruction": "Who?", "output": "Ann."}, "instruction", ASKED),
    ({"instruction": "Who?", "input": None, "output": "Ann."}, "instruction", ASKED),
    ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "instruction", messages(("user", "Add.\n\n1, 2"), ("assistant", "3"))),
])
def test_forms(tmp_path, record, kind, expected):
    found = read_records(write(tmp_path, "a.jsonl", json.dumps(record)))
    assert found.records == [Record("a.jsonl, line 1", kind, expected)] and not found.problems


CALL = {"id": "call_1", "type": "function", "function": {"name": "age", "arguments": {"of": "Ann"}}}


@pytest.mark.parametrize("arguments", ['{"of": "Ann"}', {"of": "Ann"}])
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_tool_calls_and_tools_of_a_conversation_are_kept(tmp_path, arguments, form):
    said = [{"role": "user", "content": "How old?"}, {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {"name": "age", "arguments": arguments}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "7"}, {"role": "assistant", "content": "Seven.", "refusal": None}]
    found = read_records(write(tmp_path, "a.jsonl", json.dumps({form: said, "tools": [{"type": "function", "function": {"name": "age"}}]})))
    record, = found.records
    assert record.tools == ({"type": "function", "function": {"name": "age"}},) and not found.warnings("train_data_dir")
    assert record.messages == ({"role": "user", "content": "How old?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                               {"role": "tool", "content": "7", "tool_call_id": "call_1"}, {"role": "assistant", "content": "Seven."})


def test_a_weight_of_0_is_kept_and_an_empty_system_text_is_none(tmp_path):
    said = [{"role": "system", "content": " "}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]
    record, = read_records(write(tmp_path, "a.jsonl", json.dumps({"messages": said}))).records
    assert record.messages == ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}, *messages(("user", "c"), ("assistant", "d")))
    assert [record.is_learned(number) for number in range(4)] == [False, False, False, True]
    told, = read_records(write(tmp_path, "b.jsonl", json.dumps({"system": "Be brief.", "messages": said[:1] + said[3:]}))).records
    assert told.messages[0] == {"role": "system", "content": "Be brief."}


def test_text_is_taken_as_it_is(tmp_path):
    found = read_records(write(tmp_path, "a.jsonl", '{"text": "  Once.\\n"}'))
    assert found.records == [Record("a.jsonl, line 1", "text", text="  Once.\n")]


def test_of_a_prompt_with_answers_in_it_only_the_completion_is_learned(tmp_path):
    record = {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
              "completion": [{"role": "assistant", "content": "d"}]}
    found, = read_records(write(tmp_path, "a.jsonl", json.dumps(record))).records
    assert found.learned_from == 3 and len(found.messages) == 4


TOLD = messages(("system", "Be brief."), *((m["role"], m["content"]) for m in ASKED))


@pytest.mark.parametrize("record, kind, expected, learned_from", [
    ({"system": "Be brief.", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ann."}]}, "messages", TOLD, 0),
    ({"system": "Be brief.", "messages": list(TOLD)}, "messages", TOLD, 0),
    ({"system": "", "history": [], "instruction": "Who?", "output": "Ann."}, "instruction", ASKED, 0),
    ({"system": "Be brief.", "instruction": "Who?", "output": "Ann."}, "instruction", TOLD, 0),
    ({"system": "Be brief.", "prompt": "Who?", "completion": "Ann."}, "messages", TOLD, 0),
    ({"system": "Be brief.", "prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "Ann."}]}, "messages", TOLD, 2),
    ({"system": "Be brief.", "history": [["a", "b"], ["c", "d"]], "instruction": "Who?", "input": "", "output": "Ann."}, "instruction",
     (TOLD[0], *messages(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")), *ASKED), 0),
    ({"history": [["a", "b"]], "prompt": "Who?", "completion": "Ann."}, "messages", (*messages(("user", "a"), ("assistant", "b")), *ASKED), 0),
])
def test_system_and_history_come_before_the_last_question(tmp_path, record, kind, expected, learned_from):
    found = read_records(write(tmp_path, "a.jsonl", json.dumps(record)))
    assert found.records == [Record("a.jsonl, line 1", kind, expected, learned_from=learned_from)] and not found.problems and not found.warnings("data")


def test_keys_that_are_not_read_are_named_once_with_how_many_records_have_them(tmp_path):
    record = {"id": 3, "source": "web", "instruction": "Who?", "output": "Ann.", "tools": "[]", "empty": ""}
    text = "\n".join(json.dumps({**record, **more}) for more in ({}, {"weight": 2}, {"tools": None})) + '\n{"text": "a", "history": "b"}\nbad'
    found = read_records(write(tmp_path, "a.jsonl", text))
    assert found.warnings("my_data") == ["records of my_data have keys that are not read and not learned: 'tools' (in 2 records), 'weight' (in 1 records), "
                                         "'history' (in 1 records); read are messages, prompt and completion, instruction and output, or text, with system "
                                         "and history"]


def test_system_and_history_in_a_table(tmp_path):
    text = 'instruction,output,system,history\nWho?,Ann.,Be brief.,"[[""a"", ""b""]]"\nWho?,Ann.,,\nWho?,Ann.,,oops\n'
    found = read_records(write(tmp_path, "a.csv", text))
    assert [record.messages for record in found.records] == [(TOLD[0], *messages(("user", "a"), ("assistant", "b")), *ASKED), ASKED]
    assert len(found.problems) == 1 and found.problems[0].startswith("a.csv, line 4: this is not JSON")


@pytest.mark.parametrize("line, expected", [
    ('{"system": 3, "prompt": "a", "completion": "b"}', "system is 3 but must be text"),
    ('{"system": "x", "messages": [{"role": "system", "content": "y"}, {"role": "assistant", "content": "b"}]}', "two different system texts; keep one"),
    ('{"history": "a", "prompt": "a", "completion": "b"}', "history is 'a' but must be a list of pairs"),
    ('{"history": [["a"]], "prompt": "a", "completion": "b"}', "history is [['a']] but must be a list of pairs"),
    ('{"history": [["a", "b"], ["c", ""]], "prompt": "a", "completion": "b"}', "answer 2 of history is empty"),
    ("not json", "this is not JSON"),
    ('{"prompt": "a", "completion"', "this is not JSON"),
    ("[" * 100_000, "nested too deeply"),
    ("[1, 2]", "must be a record with messages"),
    ('"text"', "must be a record with messages"),
    ("{}", "it has nothing but must have messages, prompt and completion"),
    ('{"question": "a"}', "it has question but must have"),
    ('{"prompt": "a"}', "completion is missing"),
    ('{"prompt": "a", "completion": " "}', "completion is empty"),
    ('{"prompt": 3, "completion": "b"}', "prompt is 3 but must be text"),
    ('{"instruction": "a"}', "output is missing"),
    ('{"text": ""}', "text is empty"),
    ('{"text": "a\\ud800"}', "lone surrogate"),
    ('{"messages": []}', "messages is"),
    ('{"messages": "a"}', "messages is"),
    ('{"messages": ["a"]}', "message 1 is"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "no message is of the assistant"),
    ('{"messages": [{"role": "assistant", "content": "a"}]}', "the first message is the assistant's"),
    ('{"messages": [{"role": "boss", "content": "a"}]}', "message 1 has the role 'boss' but must have one of system, user"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}', "message 2: content is missing"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}', "message 2: content is empty"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}',
     "message 4: content is missing"),
    ('{"messages": [{"role": "system", "content": "a"}]}', "no message is of the assistant"),
    ('{"messages": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}]}', "no message is of the assistant"),
    ('{"messages": [{"role": "system", "content": ""}], "system": "a"}', "no message is of the assistant"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}', "all answers have weight 0"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}', "message 2: weight is 0.5 but must be 1"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {}}]}]}', "message 2: a call of tool_calls is"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]}', "arguments of the call f are"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "function_call": {"name": "f"}}]}', "message 2: function_call is the form before"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": "x"}', "tools is 'x' but must be a list"),
])
def test_a_bad_record_is_named_with_its_line_and_skipped(tmp_path, line, expected):
    path = write(tmp_path, "my data.jsonl", f'{{"text": "good"}}\n\n{line}\n{{"text": "good too"}}\n')
    found = read_records(path)
    assert [record.place for record in found.records] == ["my data.jsonl, line 1", "my data.jsonl, line 4"]
    problem, = found.problems
    assert problem.startswith("my data.jsonl, line 3: ") and expected in problem and len(problem) < 400
    assert "; 1 skipped" in found.report(len(found.problems))


def test_a_line_that_is_not_utf8_is_the_only_one_lost(tmp_path):
    lines = ['{"text": "Zürich"}', '{"text": "Genève"}', '{"text": "Bern"}']
    data = "\n".join(lines).encode() + b'\n{"text": "M\xfcnchen"}\n'
    found = read_records(write(tmp_path, "a.jsonl", data))
    assert [record.text for record in found.records] == ["Zürich", "Genève", "Bern"]
    assert found.problems == ["a.jsonl, line 4: byte 12 of the line is not UTF-8; save the file as UTF-8"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_files_of_other_encodings(tmp_path, encoding):
    found = read_records(write(tmp_path, "a.jsonl", "\n".join('{"text": "Zürich, Genève, Besançon"}' for _ in range(3)).encode(encoding)))
    assert [record.text for record in found.records] == ["Zürich, Genève, Besançon"] * 3


def test_csv(tmp_path):
    text = 'Prompt,completion,id\r\nWho?,Ann.,1\r\n"Where, then?","In\r\nRome, ""here""",2\r\nWhat?,,3\r\nWhen?,a,b,c,d\r\nWhy?,So.,5\r\n'
    found = read_records(write(tmp_path, "a.csv", text))
    assert [(record.place, record.messages[0]["content"], record.messages[1]["content"]) for record in found.records] == [
        ("a.csv, line 2", "Who?", "Ann."), ("a.csv, line 3", "Where, then?", 'In\r\nRome, "here"'), ("a.csv, line 7", "Why?", "So.")]
    assert [problem.split(":")[0] for problem in found.problems] == ["a.csv, line 5", "a.csv, line 6"]
    assert "completion is missing" in found.problems[0] and "5 cells and the header 3" in found.problems[1]


@pytest.mark.parametrize("bad", ['"What" is it?,A cat.', '"What is it?,A cat.'])
def test_a_row_with_a_wrong_quote_is_the_only_one_lost(tmp_path, bad):
    found = read_records(write(tmp_path, "a.csv", f'prompt,completion\nWho?,Ann.\n{bad}\n"Where?","In\nRome."\nWhen?,Now.\n'))
    assert [(record.place, record.messages[1]["content"]) for record in found.records] == [
        ("a.csv, line 2", "Ann."), ("a.csv, line 4", "In\nRome."), ("a.csv, line 6", "Now.")]
    problem, = found.problems
    assert problem.startswith("a.csv, line 3: this is not a row of a CSV file")


def test_empty_lines_of_a_table_are_counted_and_nothing_else(tmp_path):
    found = read_records(write(tmp_path, "a.csv", "\n\nprompt,completion\nWho?,Ann.\n\nWhat?,\nWhy?,So.\n"))
    assert [record.place for record in found.records] == ["a.csv, line 4", "a.csv, line 7"]
    assert found.problems == ["a.csv, line 6: completion is missing; write it or remove the record"]


@pytest.mark.parametrize("name, text", [("a.tsv", "instruction\toutput\nWho?\tAnn.\n"), ("a.csv", "instruction;input;output\nWho?;;Ann.\n"),
                                        ("b.csv", "messages\n" + '"[{""role"": ""user"", ""content"": ""Who?""}, '
                                         '{""role"": ""assistant"", ""content"": ""Ann.""}]"\n')])
def test_other_tables(tmp_path, name, text):
    found = read_records(write(tmp_path, name, text))
    assert found.records[0].messages == ASKED and not found.problems


@pytest.mark.parametrize("text", ['[{"text": "a"}, {"text": "b"}]', '{"text": "a"}\n{"text": "b"}\n'])
def test_json(tmp_path, text):
    assert [record.text for record in read_records(write(tmp_path, "a.json", text)).records] == ["a", "b"]


def test_a_folder_of_texts_in_the_order_of_names(tmp_path):
    for name, text in (("b.txt", "second"), ("a.md", "first"), ("sub folder/c.TXT", "third"), (".hidden/d.txt", "no"), ("picture.png", "no"),
                       ("z.jsonl", '{"text": "last"}')):
        write(tmp_path / "folder", name, text)
    write(tmp_path / "folder", "empty.txt", "  \n")
    found = read_records(tmp_path / "folder")
    assert [record.text for record in found.records] == ["first", "second", "third", "last"]
    assert found.problems == ["empty.txt: text is empty; write it or remove the record"]
    assert "4 records in" in found.report(1) and "4 text" in found.report(1)


@pytest.mark.parametrize("make, expected", [
    (lambda folder: folder / "nowhere", "train_data_dir is .*nowhere, which does not exist; give a file"),
    (lambda folder: write(folder, "a.docx", "x"), "read from files that end in .jsonl"),
    (lambda folder: folder, "which has no file that ends in .jsonl"),
    (lambda folder: write(folder, "a.jsonl", ""), "which has no record; write records with messages"),
    (lambda folder: write(folder, "a.jsonl", "{}\n{}\n"), "where 2 of 2 records cannot be used; the first: a.jsonl, line 1: it has nothing"),
    (lambda folder: write(folder, "a.json", "[1,"), "where 1 of 1 records cannot be used; .* line 1, column 4"),
])
def test_nothing_that_can_be_used_is_one_sentence(tmp_path, make, expected):
    with pytest.raises(ValueError, match=expected):
        read_records(make(tmp_path))

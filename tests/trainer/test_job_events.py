"""The event log: ids, replay, thinning, and lines that a kill has cut off."""
import errno
import threading

import pytest

from hotlora.trainer import job_events
from hotlora.trainer.job_events import EventLog, thinned
from hotlora.trainer.job_store import LossFile


@pytest.fixture
def log(tmp_path):
    return EventLog(tmp_path)


def ids(events):
    return [event["id"] for event in events]


def test_ids_go_on_after_a_restart_and_a_torn_line_is_passed_over(log, tmp_path):
    for number in range(3):
        log.add("log", "a", text=str(number))
    log.add("loras", names=["x"])
    with (tmp_path / "a" / "events.jsonl").open("ab") as file:
        file.write(b'{"id": 5, "kind": "lo')
    again = EventLog(tmp_path)
    assert again.last == 4
    assert again.add("log", "a", text="after")["id"] == 5
    assert ids(EventLog(tmp_path).since(0)) == [1, 2, 3, 4, 5]
    assert ids(again.since(3)) == [4, 5] and ids(again.since(4)) == [5] and again.since(5) == []


def test_on_a_full_disk_an_event_is_told_all_the_same_and_the_fault_once(log, tmp_path, monkeypatch, caplog):
    def full(path, line):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    log.add("log", "a", text="before")
    stream = log.stream(None)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(job_events, "append_line", full)
        for number in range(3):
            log.add("log", "a", text=str(number))
        assert next(stream).count(b"event: log") == 3 and ids(log.since(0)) == [1, 2, 3, 4]
    log.add("log", "a", text="after")
    assert caplog.text.count("No space left on device") == 1 and ids(EventLog(tmp_path).since(0)) == [1, 5]


def test_what_is_no_number_goes_out_as_null_also_from_the_file_of_an_earlier_version(log, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "events.jsonl").write_text('{"id": 1, "kind": "measured", "job": "a", "held_out": NaN, "drift": Infinity}\n')
    again = EventLog(tmp_path)
    stream = again.stream(0)
    next(stream)
    again.add("measured", "a", held_out=float("-inf"), drift=0.5, losses=[[1, float("nan")]])
    for part in next(stream).decode().split("\n\n")[:-1]:
        assert "NaN" not in part and "Infinity" not in part and '"held_out": null' in part
    assert '"losses": [[1, null]]' in part and "NaN" not in (tmp_path / "a" / "events.jsonl").read_text().splitlines()[1]


def test_what_is_not_in_memory_any_more_comes_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(job_events, "IN_MEMORY", 10)
    log = EventLog(tmp_path)
    for number in range(40):
        log.add("log", "ab"[number % 2], text=str(number))
    for after in range(41):
        assert ids(log.since(after)) == list(range(after + 1, 41))


def test_a_start_reads_the_end_of_a_long_file_only(log, tmp_path, monkeypatch):
    for number in range(400):
        log.add("step", "a", losses=[[number, 0.1]] * 20)
    path = tmp_path / "a" / "events.jsonl"
    parsed, parse = [], job_events._parse
    monkeypatch.setattr(job_events, "_parse", lambda line: parsed.append(line) or parse(line))
    assert EventLog(tmp_path).last == 400 and len(parsed) < 5
    with path.open("ab") as file:
        file.write(b"x" * 5 * job_events.TAIL + b"\n\n")
    assert EventLog(tmp_path).last == 400
    path.write_bytes(b"x" * 5 * job_events.TAIL)
    assert EventLog(tmp_path).last == 0


def test_steps_of_a_long_file_are_thinned_before_they_are_parsed(log, tmp_path, monkeypatch):
    for number in range(1, 2001):
        log.add("log" if number % 500 == 0 else "step", "a", step=number)
    again, parsed, parse = EventLog(tmp_path), [], job_events._parse
    monkeypatch.setattr(job_events, "_parse", lambda line: parsed.append(line) or parse(line))
    found = again.since(10)
    steps = [event for event in found if event["kind"] == "step"]
    assert len(parsed) < 520 and 400 < len(steps) <= 500 and all(event["thinned"] for event in steps) and steps[-1]["step"] == 1999
    assert [event["step"] for event in found if event["kind"] == "log"] == [500, 1000, 1500, 2000] and ids(found) == sorted(ids(found))


def test_a_reader_of_the_history_holds_nobody_up(log, tmp_path, monkeypatch):
    log.add("log", "a", text="old")
    again, reading, added, read = EventLog(tmp_path), threading.Event(), threading.Event(), job_events._read

    def slow(*arguments):
        reading.set()
        assert added.wait(60), "an event waits for the one who reads"
        return read(*arguments)

    def add():
        assert reading.wait(60)
        again.add("log", "a", text="new")
        added.set()

    monkeypatch.setattr(job_events, "_read", slow)
    adding = threading.Thread(target=add)
    adding.start()
    stream = again.stream(0)
    next(stream)
    assert b'"old"' in (first := next(stream)) and b'"new"' not in first and b'"new"' in (second := next(stream)) and b'"old"' not in second
    adding.join()


def test_the_lines_of_one_job(log, tmp_path):
    for number in range(10):
        log.add("log", "ab"[number % 2], text=str(number))
        log.add("step", "a", step=number)
    again = EventLog(tmp_path)
    again.add("log", "a", text="new")
    assert [event["text"] for event in again.of_job("a", "log", 100)] == ["0", "2", "4", "6", "8", "new"]
    assert [event["text"] for event in again.of_job("a", "log", 2)] == ["8", "new"] and again.of_job("c", "log", 2) == []


def test_a_long_gap_has_fewer_steps_but_every_other_event():
    events = [{"id": 1, "kind": "job", "job": "a"}]
    events += [{"id": i, "kind": "saved" if i % 1000 == 0 else "step", "job": "a"} for i in range(2, 10_001)]
    events += [{"id": i, "kind": "step", "job": "b"} for i in range(10_001, 10_101)]
    found = thinned(events)
    assert len([event for event in found if event["kind"] == "step" and event["job"] == "a"]) <= 500
    assert [event for event in found if event["kind"] != "step"] == [event for event in events if event["kind"] != "step"]
    assert [event for event in found if event["job"] == "b"] == events[-100:]
    assert ids(found) == sorted(ids(found)) and ids(found)[-101:][0] <= 10_000
    assert [event["id"] for event in found if event["kind"] == "step" and event["job"] == "a"][-1] == 9999
    assert all(event.get("thinned") for event in found if event["kind"] == "step" and event["job"] == "a")


def test_a_stream_waits_for_news_and_ends_when_it_is_closed(log):
    log.add("log", text="before")
    stream = log.stream(None)
    assert next(stream).startswith(b"retry: ")
    threading.Thread(target=lambda: log.add("log", text="new\nline")).start()
    part = next(stream)
    assert part.startswith(b"id: 2\nevent: log\ndata: {") and part.endswith(b"}\n\n") and part.count(b"\n") == 4
    closing = threading.Thread(target=stream.close)
    closing.start()
    assert list(stream) == []
    closing.join()


def test_closing_the_log_ends_every_stream(log):
    streams = [log.stream(0), log.stream(None)]
    for stream in streams:
        next(stream)
    log.close()
    assert [list(stream) for stream in streams] == [[], []]


def test_an_id_from_the_future_means_only_what_is_new(log):
    log.add("log", text="a")
    stream = log.stream(10**9)
    next(stream)
    log.add("log", text="b")
    assert b"id: 2\n" in next(stream)


def test_losses_of_steps_done_again_replace_the_former(tmp_path):
    losses = LossFile(tmp_path)
    for step in [*range(1, 11), *range(6, 13)]:
        losses.add(step, float(step) if step < 6 else 100.0 + step)
    with losses.path.open("ab") as file:
        file.write(b"13 0.")
    found = losses.read(100)
    assert [step for step, _ in found] == list(range(1, 13)) and found[5][1] == 106
    assert losses.read(4) == [[3, 2.0], [6, (4 + 5 + 106) / 3], [9, 108.0], [12, 111.0]]
    losses.add(13, 113.0)
    assert losses.read(100)[-1] == [13, 113.0]

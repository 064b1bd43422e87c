"""Pictures to try a LoRA with, also while a training runs on the same base."""
import errno
import threading

import pytest
from PIL import Image

from hotlora.tests.trainer.test_jobs import Host, ended, long, running, until
from hotlora.trainer.drawing import KEPT, MOST, DrawingQueue
from hotlora.trainer.hosts.standalone_host import Tickets
from hotlora.trainer.jobs import JobQueue
from hotlora.trainer.lora_file import load_lora

REQUEST = {"prompt": "a red circle on a white background", "negative": "", "seed": 3, "steps": 2, "guidance": None, "width": None, "height": None}


@pytest.fixture
def host(tmp_path, backend):
    return Host(tmp_path / "home", backend)


@pytest.fixture
def jobs(host):
    queue = JobQueue(host)
    yield queue
    queue.close()


@pytest.fixture
def settings(gallery):
    return {"train_data_dir": str(gallery), "name": "face", "trigger": "sks", "steps": 4, "lora_rank": 4, "learning_rate": 0.05, "save_dtype": "fp32"}


def drawn(jobs, **changes):
    drawing = jobs.drawings.submit({**REQUEST, "names": [], "weights": [0], **changes})
    until(lambda: drawing.status not in ("queued", "drawing"))
    with jobs.drawings.lock:  # what belongs to the change is told by now
        return drawing


def picture(jobs, drawing, number):
    return Image.open(jobs.drawings.picture(drawing, drawing.pictures[number]["file"])).tobytes()


def test_a_grid_has_a_row_for_each_step_and_a_column_for_each_weight(jobs, settings):
    ended(jobs, jobs.submit({**settings, "save_steps": 2}, None))
    drawing = drawn(jobs, names=["face-000002", "face"], weights=[0, 0.5, 1])
    assert (drawing.status, drawing.message) == ("done", "")
    assert [(one["name"], one["weight"]) for one in drawing.pictures] == [
        ("", 0), ("face-000002", 0.5), ("face-000002", 1), ("face", 0.5), ("face", 1)]
    assert len({picture(jobs, drawing, i) for i in range(5)}) == 5
    told = [event["state"] for event in jobs.events.since(0) if event["kind"] == "drawing"]
    assert [len(state["pictures"]) for state in told] == [0, 0, 1, 2, 3, 4, 5, 5] and told[-1]["status"] == "done" and told[0]["total"] == 5
    by_tag = drawn(jobs, prompt="a red circle on a white background <lora:face:1>")
    assert picture(jobs, by_tag, 0) == picture(jobs, drawing, 4)


def test_a_training_lets_pictures_in_and_learns_the_same(jobs, settings):
    alone = ended(jobs, jobs.submit({**settings, "name": "alone", "steps": 12}, None))
    bare = drawn(jobs)
    job = running(jobs, {**settings, "name": "shared", "steps": 12})
    among = drawn(jobs)
    assert among.status == "done" and picture(jobs, among, 0) == picture(jobs, bare, 0)
    assert ended(jobs, job).status == alone.status == "completed"
    first, second = (load_lora(jobs.host.lora_folders()[0] / f"{name}.safetensors")[0] for name in ("alone", "shared"))
    assert first.keys() == second.keys()
    assert all((first[key][part] == second[key][part]).all() for key in first for part in ("down", "up"))


def test_a_drawing_is_drawn_while_a_long_training_runs(jobs, settings):
    job = running(jobs, long(settings))
    assert drawn(jobs).status == "done" and job.status == "running"
    jobs.command(job.id, "stop")
    ended(jobs, job)


def test_it_can_be_cancelled_and_keeps_what_is_drawn(jobs):
    drawing = jobs.drawings.submit({**REQUEST, "steps": 150, "names": [], "weights": [0]})
    after = jobs.drawings.submit({**REQUEST, "names": [], "weights": [0]})
    jobs.drawings.cancel(after)
    jobs.drawings.cancel(drawing)
    assert drawing.status == after.status == "cancelled"
    assert drawn(jobs).status == "done" and not after.pictures


def test_a_cancelled_picture_is_not_drawn_to_its_end(jobs, host, monkeypatch):
    backend, steps = host._loaded[1]._inner, []
    predict = backend.predict

    def counted(*arguments):
        steps.append(1)
        if len(steps) == 3:
            jobs.drawings.cancel(jobs.drawings.all()[0])
        return predict(*arguments)

    monkeypatch.setattr(backend, "predict", counted)
    drawing = drawn(jobs, steps=150)
    assert drawing.status == "cancelled" and not drawing.pictures
    assert drawn(jobs, steps=4).status == "done" and len(steps) == 3 + 4


@pytest.mark.parametrize("changes, sentence", [
    ({"names": ["fase"]}, "the closest names are face"), ({"prompt": "<lora:fase:1>"}, "the closest names are face"), ({"prompt": "<lora:face"}, "not closed"),
    ({"names": ["face"] * 20, "weights": [0.1, 0.2, 0.3, 0.4]}, f"80 pictures, at most {MOST}")])
def test_what_cannot_be_drawn_is_said_at_once(jobs, changes, sentence):
    folder = jobs.host.lora_folders()[0]
    folder.mkdir(parents=True)
    (folder / "face.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=sentence):
        drawn(jobs, **changes)
    assert jobs.drawings.all() == []


def test_a_file_that_is_no_lora_ends_one_drawing_and_the_next_is_drawn(jobs):
    folder = jobs.host.lora_folders()[0]
    folder.mkdir(parents=True)
    (folder / "broken.safetensors").write_bytes(b"not one")
    failed = drawn(jobs, names=["broken"], weights=[1])
    assert failed.status == "failed" and "broken.safetensors" in failed.message and "Traceback" in failed.details
    assert drawn(jobs).status == "done"


def test_a_full_disk_ends_a_drawing_and_no_later_one(jobs, monkeypatch):
    def full(*arguments, **facts):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(jobs.events, "add", full)
        patch.setattr("hotlora.trainer.drawing.write_png", full)
        failed = drawn(jobs)
        assert failed.status == "failed" and "No space left" in failed.message
    assert drawn(jobs).status == "done"


def test_drawings_go_on_when_their_thread_has_died(jobs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(DrawingQueue, "_work", lambda self: None)
        waiting = jobs.drawings.submit({**REQUEST, "names": [], "weights": [0]})
        jobs.drawings.join(60)
    assert drawn(jobs).status == waiting.status == "done"


def test_a_closed_queue_draws_nothing_any_more(jobs):
    drawing = jobs.drawings.submit({**REQUEST, "steps": 150, "names": [], "weights": [0]})
    jobs.drawings.close()
    jobs.drawings.join(120)
    assert drawing.status == "cancelled" and not jobs.drawings._thread.is_alive()
    with pytest.raises(ValueError, match="being closed"):
        drawn(jobs)


def test_drawings_are_there_after_a_restart_and_old_ones_go(jobs, host):
    made = [drawn(jobs, seed=i, steps=1) for i in range(KEPT + 2)]
    again = DrawingQueue(host, jobs.events)
    assert [one.id for one in again.all()] == [one.id for one in reversed(made[2:])]
    assert again.picture(again.all()[0], "000.png").is_file() and again.picture(again.all()[0], "../drawing.json") is None


def test_another_base_waits_until_the_first_is_free(host):
    from hotlora.trainer.config import TrainConfig

    host._paths["other"] = "demo"
    inside = []

    def work(backend):
        with pytest.raises(ValueError, match="the base demo is in use"):
            host.with_backend(TrainConfig(train_data_dir="x", base_model="other"), inside.append)

    host.with_backend(TrainConfig(train_data_dir="x"), work)
    assert not inside
    host.with_backend(TrainConfig(train_data_dir="x", base_model="other"), inside.append)
    assert inside[0].name == "demo"


def test_tickets_go_round_in_order():
    tickets, order = Tickets(), []

    def take(number):
        with tickets.held():
            order.append(number)

    threads = []
    with tickets.held():
        assert not tickets.waiting
        for number in range(5):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            until(lambda: tickets._given == number + 2)
        assert tickets.waiting and order == []
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4] and not tickets.waiting

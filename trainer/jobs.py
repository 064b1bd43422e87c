"""The queue of jobs: what waits, what runs, and the commands of whoever watches."""
from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator

from .captioning import Captioning
from .drawing import DrawingQueue
from .host import Host
from .job_events import EventLog
from .job_run import JobRun, sentence
from .job_settings import checked_settings, name_of, plan
from .job_store import ACTIVE, Job, JobStore, LossFile, commands_of
from .left_out import mark_results
from .process_lock import hold

log = logging.getLogger(__name__)
ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
LOCK = "server.lock"
CLOSING_SECONDS = 10.0
"""How long closing waits for a drawing that does not end by itself."""


class NoSuchJob(ValueError):
    """There is no job of that id."""


class NotNow(ValueError):
    """The job, or the host, is in a state in which this cannot be done; the message says what can."""


class JobQueue:
    """Jobs of one host, carried out one after the other by one thread. Everything is on disk below `home/jobs`.

    After a restart the job that ran is "interrupted", and nothing trains by itself, as a crash would then repeat for ever:
    `waiting` says so, until something is started or resumed. ValueError when another server uses the same home.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.store = JobStore(host.home / "jobs")
        self._lock_file = _lock(host.home)
        mark_results(host.home)
        self.events = EventLog(self.store.folder)
        self.drawings = DrawingQueue(host, self.events)
        self.captioning = Captioning(host, self.events)
        self.lock = threading.RLock()
        self._wake = threading.Condition(self.lock)
        self._jobs = {job.id: job for job in self.store.load_all()}
        self._queue = [job.id for job in sorted(self._jobs.values(), key=lambda job: job.position) if job.status == "queued"]
        self.waiting = bool(self._queue)
        self._run: JobRun | None = None
        self._closed = False
        self._mark_interrupted()
        self._worker = threading.Thread(target=self._work, name="hotlora-jobs", daemon=True)
        self._worker.start()

    def _mark_interrupted(self) -> None:
        for job in self._jobs.values():
            if job.status in ACTIVE:
                job.step, job.seconds_left, job.ended = self.store.saved_step(job), None, time.time()
                job.message = f"the server ended while this was running; Resume goes on from step {job.step}"
                self._end(job, "interrupted")

    def snapshot(self) -> dict[str, Any]:
        """All jobs, newest first, and the id of the last event that they include: what follows it is news."""
        with self.lock:
            jobs = [job.public(whole=False) for job in reversed(list(self._jobs.values()))]
            return {"jobs": jobs, "queue": list(self._queue), "waiting": self.waiting, "last_event": self.events.last}

    def get(self, job_id: str) -> Job:
        with self.lock:
            if job_id not in self._jobs:
                raise NoSuchJob(f"there is no job {job_id[:80]!r}; it may have been removed, so load the list again")
            return self._jobs[job_id]

    def losses(self, job: Job, points: int) -> list[list[float]]:
        return LossFile(self.store.run_folder(job)).read(points)

    def submit(self, settings: dict[str, Any], preset: str | None) -> Job:
        """Queue a run. ValueError names the first setting that is wrong; NotNow when the host cannot train."""
        told = plan(self.host, settings, preset, None)
        if told["reason"]:
            raise NotNow(told["reason"])
        if not told["pictures"]:
            raise ValueError(told["warnings"][0])
        config, warnings = checked_settings(self.host, settings)
        with self.lock:
            job = Job(self.store.new_id(), name_of(config), dict(settings), preset, created=time.time(), trigger=config.trigger, warnings=warnings,
                      pictures=told["pictures"], total_steps=told["steps"])
            with self._whole(job):
                self._jobs[job.id] = job
                self._queue.append(job.id)
                self.change(job, "queued")
            self._go()
        return job

    @contextmanager
    def _whole(self, job: Job) -> Iterator[None]:
        """A change of a job and the queue that cannot be written down has not happened, so that trying it again does not do it twice."""
        jobs, queue, status, ended = dict(self._jobs), list(self._queue), job.status, job.ended
        try:
            yield
        except OSError:
            self._jobs, self._queue, job.status, job.ended = jobs, queue, status, ended
            if job.id not in jobs:
                shutil.rmtree(self.store.folder / job.id, ignore_errors=True)
            raise

    def plan(self, settings: dict[str, Any], preset: str | None) -> dict[str, Any]:
        return plan(self.host, settings, preset, self._measured(settings))

    def _measured(self, settings: dict[str, Any]) -> float | None:
        """Seconds per picture of the newest run with the same base and size."""
        with self.lock:
            for job in reversed(list(self._jobs.values())):
                same = all(job.settings.get(key) == settings.get(key) for key in ("resolution", "base_model", "gradient_checkpointing"))
                if job.seconds_per_picture and same:
                    return job.seconds_per_picture
        return None

    def command(self, job_id: str, command: str, before: str | None = None) -> Job:
        """stop, pause, resume, save, sample, cancel, again, move, remove. NoSuchJob, or NotNow when the job is in another state."""
        with self.lock:
            job = self.get(job_id)
            if command not in commands_of(job):
                raise NotNow(f"{job.name} is {job.status}, so it cannot {_VERBS.get(command, command)}; it can {', '.join(commands_of(job))}")
            if command == "again":
                return self.submit(job.settings, job.preset)
            if command == "remove":
                return self._remove(job)
            if command in ("cancel", "move"):
                self._requeue(job, command, before)
            elif command == "resume" and job.status != "paused":
                self._resume(job)
            else:
                assert self._run is not None and self._run.job is job
                self._run.ask(command)
                job.message = _MESSAGES.get(command, job.message)
                self.publish(job)
            return job

    def _resume(self, job: Job) -> None:
        """A job that ended goes to the front of the queue; on a queued one it means that the queue may go on."""
        if job.id not in self._queue:
            with self._whole(job):
                self._queue.insert(0, job.id)
                self.change(job, "queued")
        self._go()
        self.publish(job)

    def _requeue(self, job: Job, command: str, before: str | None) -> None:
        if before is not None and (before not in self._queue or before == job.id):
            raise NotNow(f"{str(before)[:80]!r} is not a job in the queue that {job.name} could be put before; load the list again")
        with self._whole(job):
            self._queue.remove(job.id)
            if command == "move":
                self._queue.insert(len(self._queue) if before is None else self._queue.index(before), job.id)
            else:
                job.ended = time.time()
            self.change(job, "cancelled" if command == "cancel" else "queued")

    def _remove(self, job: Job) -> Job:
        """Into the trash, from where `restore` takes it back."""
        place = self._trashed(job.id)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.store.folder / job.id, place)
        del self._jobs[job.id]
        self.events.add("job", id_of_job=job.id, removed=True)
        return job

    def restore(self, job_id: str) -> Job:
        """A removed job, back in the history."""
        with self.lock:
            if not ID.fullmatch(job_id) or not self._trashed(job_id).is_dir():
                raise NoSuchJob(f"there is no removed job {job_id[:80]!r}")
            os.replace(self._trashed(job_id), self.store.folder / job_id)
            job = self.store.load(self.store.folder / job_id / "job.json")
            if job is None:
                raise NoSuchJob(f"the removed job {job_id} is damaged")
            self._jobs = dict(sorted({**self._jobs, job.id: job}.items(), key=lambda item: (item[1].created, item[0])))
            self.publish(job)
            return job

    def _trashed(self, job_id: str) -> Path:
        return self.host.home / "trash" / "jobs" / job_id

    def change(self, job: Job, status: str) -> None:
        """Write a job down and tell everybody."""
        with self.lock:
            job.status = status
            for position, queued in enumerate(self._queue):
                other = self._jobs[queued]
                if other.position != position and other is not job:
                    self._place(other, position)
            self._place(job, self._queue.index(job.id) if job.id in self._queue else 0)
            self.publish(job)

    def _place(self, job: Job, position: int) -> None:
        self.store.save(replace(job, position=position))
        job.position = position

    def _end(self, job: Job, status: str) -> None:
        """As `change`, also where nothing can be written: then it holds until the server ends."""
        try:
            self.change(job, status)
        except OSError as error:
            log.warning("%s is %s, which cannot be written down: %s", job.name, status, error)
            self.publish(job)

    def publish(self, job: Job) -> None:
        self.events.add("job", job.id, state=job.public(whole=False), queue=list(self._queue), waiting=self.waiting)

    def _go(self) -> None:
        self.waiting = False
        self._wake.notify_all()

    def _work(self) -> None:
        while True:
            with self.lock:
                while not self._closed and (self.waiting or not self._queue):
                    self._wake.wait()
                if self._closed:
                    return
                run = self._run = JobRun(self, self._jobs[self._queue.pop(0)])
                begun = self._guarded(run.job, lambda: self.change(run.job, "preparing"))
            if begun:
                self._guarded(run.job, run.execute)
            with self.lock:
                self._run = None

    def _guarded(self, job: Job, work: Callable[[], None]) -> bool:
        """Whether it could be done. Where not, as on a full disk, on which the job cannot even be written down, it has failed and the next one has its turn."""
        try:
            work()
            return True
        except Exception as error:
            log.exception("the job %s could not be carried out", job.name)
            with self.lock:
                if job.status in ACTIVE:
                    job.message, job.details, job.seconds_left, job.ended = sentence(error), "".join(traceback.format_exception(error)), None, time.time()
                    job.status = "failed"
                self._end(job, job.status)
            return False

    def close(self) -> None:
        """Stop what runs, with its work saved, and end the threads."""
        self.drawings.close()
        with self.lock:
            self._closed = True
            if self._run is not None:
                self._run.closing = True
                self._run.ask("stop")
            self._wake.notify_all()
        self.captioning.close()
        if threading.current_thread() is not self._worker:
            self._worker.join()
        self.drawings.join(CLOSING_SECONDS)
        self.events.close()
        self._lock_file.close()


_VERBS = {"move": "be moved", "cancel": "be cancelled", "stop": "be stopped", "pause": "be paused", "resume": "be resumed", "save": "be saved",
          "sample": "draw samples", "remove": "be removed"}
_MESSAGES = {"stop": "stopping after this step", "pause": "pausing after this step"}


def _lock(home: Path) -> BinaryIO:
    file = hold(home / LOCK)
    if file is None:
        raise ValueError(f"{home} is used by another HotLoRA server; use that one, close it, or choose another folder")
    return file

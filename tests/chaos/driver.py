"""A driver: a process that lives through stories, several at once, and can be killed at any time.

The log says how far each story is. Another driver goes on where this one was killed.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import ray

import ray_workflows as workflow
from tests.chaos import log as kinds
from tests.chaos.log import Line, Log
from tests.chaos.stories import Story, number_of, signal_value, story
from tests.chaos.tasks import Made, bind, is_whole

#: Between two calls of a verb that raised, in seconds.
PAUSE = 0.25

#: What means that the verb took effect before, though no answer came.
TAKEN_EFFECT = (
    workflow.WorkflowAlreadyRunningError,
    workflow.WorkflowAlreadyExistsError,
    workflow.SignalRefusedError,
)


class Orders(msgspec.Struct):
    """What a driver is to do."""

    address: str
    url: str
    log: str
    seed: int
    #: Numbers of stories that others have begun.
    begun: list[int]
    #: It takes the numbers from here on, in steps of `stride`; none, if `stride` is 0.
    first: int
    stride: int
    #: When this file is there, it begins no more stories.
    stop: str
    #: How many stories it lives through at once.
    width: int = 4
    #: Whether it resumes what has been interrupted, once.
    resumes: bool = False

    def numbers(self) -> Iterator[int]:
        yield from self.begun
        if self.stride:
            for number in itertools.count(self.first, self.stride):
                if os.path.exists(self.stop):
                    return
                yield number


def main() -> None:
    """Follow the orders in the file that the first argument names."""
    orders = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Orders)
    ray.init(address=orders.address, log_to_driver=False, logging_level="ERROR")
    workflow.init(orders.url)
    log = Log(orders.log)
    log.add(kinds.PHASE, text=f"a driver is up, for {len(orders.begun)} stories of others")
    past: dict[int, list[Line]] = {}
    if orders.begun:
        for line in log.read():
            if line.workflow:
                past.setdefault(number_of(line.workflow), []).append(line)
    if orders.resumes:
        resume_all(log)
    numbers, lock = orders.numbers(), threading.Lock()

    def live() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            Life(orders, log, story(orders.seed, number), past.get(number, [])).live()

    threads = [threading.Thread(target=live) for _ in range(orders.width)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def resume_all(log: Log) -> None:
    while True:
        try:
            resumed = workflow.resume_all()
        except Exception as error:
            log.add(kinds.ERROR, verb="resume_all", text=described(error))
            time.sleep(PAUSE)
        else:
            log.add(kinds.PHASE, text=f"resume_all resumed {len(resumed)} workflows")
            return


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:600]}"


class Life:
    """A story while a driver lives through it."""

    def __init__(self, orders: Orders, log: Log, told: Story, past: list[Line]) -> None:
        self.orders = orders
        self.log = log
        self.story = told
        self.acknowledged = {(line.workflow, line.verb) for line in past if line.kind == kinds.ACK}
        self.tried = {(line.workflow, line.verb) for line in past if line.kind == kinds.TRY}
        #: Refs of outputs, which the waiter of this driver serves.
        self.refs: dict[str, Any] = {}

    def live(self) -> None:
        told = self.story
        wid = told.workflow_id
        if (wid, "delete") not in self.tried:
            self.call(wid, "submit", self.submit)
            for name in told.signals:
                self.call(wid, f"signal {name}", lambda name=name: self.send(name))
            if told.canceled:
                self.call(wid, "cancel", lambda: workflow.cancel(wid))
            self.read(wid)
            if told.forked_from:
                self.call(wid, "fork", self.fork)
                self.read(told.fork_id)
        if told.deleted:
            self.call(wid, "delete", self.delete)
        self.log.add(kinds.DONE, workflow=wid)

    def call(self, wid: str, verb: str, function: Callable[[], Any]) -> None:
        """Call a verb until it returns, unless another driver has done that."""
        if (wid, verb) in self.acknowledged:
            return
        while True:
            self.log.add(kinds.TRY, workflow=wid, verb=verb)
            self.tried.add((wid, verb))
            try:
                function()
            except Exception as error:
                self.log.add(kinds.ERROR, workflow=wid, verb=verb, text=described(error))
                if isinstance(error, TAKEN_EFFECT) and verb != "delete":
                    return
                time.sleep(PAUSE)
            else:
                self.log.add(kinds.ACK, durable=True, workflow=wid, verb=verb)
                return

    def submit(self) -> None:
        wid = self.story.workflow_id
        # To run what has failed would resume it, and nothing is to go on by that.
        if (wid, "submit") in self.tried and exists(wid):
            return
        self.refs[wid] = workflow.run_async(bind(self.story.step, self.orders.log), workflow_id=wid)

    def send(self, name: str) -> None:
        wid = self.story.workflow_id
        workflow.signal(wid, name, signal_value(name), signal_id=f"{name} of {wid}")

    def fork(self) -> None:
        told = self.story
        workflow.fork(told.workflow_id, told.forked_from, told.fork_id)

    def delete(self) -> None:
        try:
            workflow.delete(self.story.workflow_id)
        except workflow.WorkflowNotFoundError:
            # By the call before, whose answer did not come.
            return

    def read(self, wid: str) -> None:
        """Wait for the end of a workflow, and log what it is for a driver."""
        while True:
            try:
                # Once by the ref; what has failed is not mended by asking it again.
                ref = self.refs.pop(wid, None)
                made = workflow.get_output(wid) if ref is None else ray.get(ref)
            except Exception as error:
                self.log.add(kinds.ERROR, workflow=wid, verb="read", text=described(error))
                status = self.log_status(wid)
                if status in ("FAILED", "CANCELED"):
                    self.log.add(kinds.FAILED, workflow=wid, text=described(error))
                    return
                if status == "RESUMABLE":
                    self.resume(wid)
                time.sleep(PAUSE)
            else:
                break
        assert isinstance(made, Made), made
        self.log.add(kinds.READ, workflow=wid, task=made.task, nonce=made.nonce, value=made.value)
        if not is_whole(made):
            self.log.add(kinds.DAMAGED, workflow=wid, task=made.task, text="output")
        self.log_status(wid)

    def resume(self, wid: str) -> None:
        """Do what the error says: with a workflow under which one coordinator after the other was
        killed none goes on by itself."""
        self.log.add(kinds.TRY, workflow=wid, verb="resume")
        try:
            workflow.resume_async(wid)
        except Exception as error:
            self.log.add(kinds.ERROR, workflow=wid, verb="resume", text=described(error))

    def log_status(self, wid: str) -> str:
        try:
            status = str(workflow.get_status(wid))
        except Exception as error:
            self.log.add(kinds.ERROR, workflow=wid, verb="status", text=described(error))
            return ""
        self.log.add(kinds.STATUS, workflow=wid, text=status)
        return status


def exists(wid: str) -> bool:
    try:
        workflow.get_status(wid)
    except workflow.WorkflowNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()

"""The way of a task through engine and journal, and what it costs: instructions, and time in
multiples of a yardstick, so that neither the machine nor its load matters.

    python -m tests.unit.engine.engine_path                # what it costs now, for the baseline
    python -m tests.unit.engine.engine_path --json 2000    # the same for `make bench`
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import msgspec

from ray_workflows._codec.journal import NO_LINK, decode_entries, encode_entry, link_of
from ray_workflows._engine.commands import commands
from ray_workflows._engine.decide import decide
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.replay import replay
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import JournalEntry
from ray_workflows._model.commands import Command, StartAttempt
from ray_workflows._model.events import Event
from ray_workflows._model.plan import Function, Plan, TaskOptions, TaskSpec
from ray_workflows._model.values import Value

#: Reports that are decided and committed together.
GROUP = 100


def make_plan(size: int) -> Plan:
    """As many tasks, of which each second one takes the result of the one before, into one."""
    spec = {"function": 0, "options": 0, "arguments": Value(b"arguments")}
    tasks = [
        TaskSpec(name="work", upstream=(index - 1,) if index % 2 else (), **spec)  # type: ignore[arg-type]
        for index in range(size)
    ]
    ends = tuple(range(1, size, 2))
    tasks.append(TaskSpec(name="total", upstream=ends, **spec))  # type: ignore[arg-type]
    function = Function(digest="f", name="work", data=b"f")
    return Plan(functions=(function,), options=(TaskOptions(),), tasks=tuple(tasks), digest="d")


class Path:
    """Brings a workflow to its end as a coordinator does, and reads its journal once."""

    def __init__(self, plan: Plan) -> None:
        self.state = WorkflowState("workflow", "incarnation")
        self.entries: list[JournalEntry] = []
        self.link = NO_LINK
        self.ready: list[StartAttempt] = []
        self.run([msg.Submit(plan=plan, metadata={})])
        while self.ready:
            group, self.ready = self.ready[:GROUP], self.ready[GROUP:]
            self.run([self.report(command) for command in group])
        assert self.state.output is not None
        self.recover()

    def report(self, command: StartAttempt) -> msg.Message:
        return msg.AttemptReturned(
            task=command.task,
            epoch=command.epoch,
            attempt=command.attempt,
            started_at=1.0,
            ended_at=2.0,
            value=Value(b"result"),
        )

    def run(self, inputs: list[msg.Message]) -> None:
        events: list[Event] = []
        deltas: list[Command] = []
        for each in inputs:
            for event in decide(self.state, each, 3.0).events:
                deltas += evolve(self.state, event)
                events.append(event)
        seq = len(self.entries) + 1
        entry = encode_entry(events, "workflow", "incarnation", seq, self.link)
        self.link = link_of(entry)
        self.entries.append(JournalEntry(seq, "commit", entry))
        catalog_row(self.state, len(self.entries))
        self.ready += [delta for delta in deltas if isinstance(delta, StartAttempt)]

    def recover(self) -> None:
        events = decode_entries(self.entries, "workflow", "incarnation")
        assert commands(replay("workflow", "incarnation", events)) == []


def instructions_per_task(size: int) -> float:
    """Bytecode instructions that the interpreter runs for each task: the same every time."""
    plan = make_plan(size)
    count = count_monitored if sys.version_info >= (3, 12) else count_traced
    return count(lambda: Path(plan)) / size


def count_traced(work: Callable[[], Any]) -> int:
    """Instructions of this thread."""
    count = 0

    def trace(frame: FrameType, kind: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += kind == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def count_monitored(work: Callable[[], Any]) -> int:
    """As `count_traced`: Python 3.12 does not always trace instructions."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    tool, event = monitoring.PROFILER_ID, monitoring.events.INSTRUCTION
    thread = threading.get_ident()
    count = 0

    def add(code: CodeType, offset: int) -> None:
        nonlocal count
        count += threading.get_ident() == thread

    monitoring.use_tool_id(tool, "ray-workflows")
    try:
        monitoring.register_callback(tool, event, add)
        monitoring.set_events(tool, event)
        work()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)
    return count


class Sample(msgspec.Struct, frozen=True):
    """A record of the yardstick."""

    name: str
    numbers: tuple[int, ...]
    value: Value


class Record:
    """A mutable one."""

    __slots__ = ("done", "number", "sample")

    def __init__(self, number: int, sample: Sample) -> None:
        self.number = number
        self.sample = sample
        self.done = False


ENCODER = msgspec.msgpack.Encoder()
DECODER = msgspec.msgpack.Decoder(list[Sample])


def yardstick(size: int) -> None:
    """Work of the same kind, and never changed: records made, found, encoded and decoded."""
    found: dict[int, Record] = {}
    data: list[bytes] = []
    for first in range(0, size, GROUP):
        group = []
        for number in range(first, first + GROUP):
            sample = Sample("work", (number, number + 1), Value(b"result"))
            found[number] = Record(number, sample)
            group.append(sample)
        data.append(ENCODER.encode(group))
        for number in range(first, first + GROUP):
            record = found[number]
            if not record.done and record.sample.name == "work":
                record.done = sum(record.sample.numbers) > 0
    assert sum(len(DECODER.decode(each)) for each in data) == size


def cpu_seconds(work: Callable[[], Any]) -> float:
    """What this thread alone has computed."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


class Ratio:
    """CPU time of the path in multiples of the yardstick's. Both are measured in turn, and of each
    the fastest counts: other load only ever adds to it."""

    def __init__(self, size: int) -> None:
        self.plan = make_plan(size)
        self.size = size
        self.path = self.stick = float("inf")

    def measure(self) -> float:
        """Measure once more; the ratio as it is known now."""
        self.stick = min(self.stick, cpu_seconds(lambda: yardstick(self.size)))
        self.path = min(self.path, cpu_seconds(lambda: Path(self.plan)))
        return self.path / self.stick


def python_version() -> str:
    """Without the patch: what a count depends on."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def main() -> None:
    """Print what it costs."""
    as_json = sys.argv[1:2] == ["--json"]
    ratio = Ratio(int(sys.argv[2]) if as_json else 2_000)
    for _ in range(40):
        found = ratio.measure()
    microseconds = ratio.path / ratio.size * 1e6
    if as_json:
        print(json.dumps({"size": ratio.size, "ratio": found, "microseconds": microseconds}))
        return
    baseline = {"instructions": round(instructions_per_task(1_000)), "ratio": round(found, 2)}
    print(f'"{python_version()}": {json.dumps(baseline)}')
    print(f"{microseconds:.1f} microseconds a task", file=sys.stderr)


if __name__ == "__main__":
    main()

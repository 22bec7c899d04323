"""Writes the golden journals of this release. Run by hand before a release, never by a test:

    python -m tests.journals.generate

With ``--records`` it only writes down the fields that records have (``records.json``), and with
``--by-hand`` also those journals that take no cluster and are not there yet. Journals of earlier
releases are never written again: what they hold is what users have.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

import ray_workflows
from ray_workflows._capture.values import ValueWriter
from ray_workflows._codec.envelope import seal
from ray_workflows._codec.journal import DECODER, NO_LINK, Chain, encode_entry, link_of
from ray_workflows._engine import snapshots
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Append, CatalogQuery
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import BODY, LISTENER, SIGNAL
from ray_workflows._model.steps import CanceledStep, StepKind, StepRecord
from ray_workflows._model.values import ErrorInfo, Outcome, Value
from ray_workflows.storage import SqliteStorage
from ray_workflows.testing.builders import OK
from tests.journals.golden import DIRECTORY, dump
from tests.ray.processes import OWN_CODE, DriverProcess
from tests.unit.bodies import BodyDriver, step, task
from tests.unit.driver import Driver
from tests.unit.plans import plan

PROLOGUE = """
    import time
    import ray, ray_workflows as workflow
    from tests.ray.marks import Gate, Marks

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             _node_ip_address="127.0.0.1")
    workflow.init("store")
    marks, gate = Marks("marks"), Gate("gate")

    @ray.remote
    def number(n):
        return n

    @ray.remote
    def total(numbers):
        return sum(ray.get(numbers))

    @ray.remote(max_retries=0)
    def fail(text, *after):
        raise ValueError(text)

    @ray.remote
    def held(value, *after):
        import os
        marks.add("held")
        gate = Gate(os.path.join({directory!r}, "gate"))
        gate.wait()
        return value

    def named(function, task_id, **options):
        return function.options(**workflow.options(task_id=task_id, **options))

    def go_wrong(dag, **options):
        try:
            workflow.run(dag, **options)
        except workflow.WorkflowExecutionError:
            return
        raise AssertionError("it did not fail")
"""

FIRST = """
    # -- success
    numbers = [named(number, f"number-{n}", metadata={"n": n}).bind(n) for n in range(3)]
    workflow.run(named(total, "total").bind(numbers), workflow_id="success",
                 metadata={"owner": "ü", "n": [1, None]})

    from ray.dag import InputNode
    with InputNode() as given:
        dag = number.bind(given.x)
    workflow.run(dag, x={"a": (1, 2)}, workflow_id="input")
    workflow.run_async_many([number.bind(n) for n in range(3)], workflow_ids=["many-0", "many-1",
                                                                             "many-2"])

    # -- retries
    @ray.remote
    def flaky():
        attempt = workflow.current().attempt
        if attempt < 3:
            raise ConnectionError(f"attempt {attempt}")
        return attempt

    retry = workflow.RetryPolicy(max_attempts=5, backoff=0.05, retry_on=(ConnectionError,))
    workflow.run(named(flaky, "flaky", retry=retry).bind(), workflow_id="retry")

    # -- failures
    go_wrong(fail.bind("boom", number.bind(1)), workflow_id="failure")
    caught = named(fail, "caught", catch_exceptions=True).bind("caught")
    workflow.run(number.bind(caught), workflow_id="caught")
    workflow.run(named(number, "fine", catch_exceptions=True).bind(1), workflow_id="caught-nothing")

    # -- continuations
    @ray.remote
    def countdown(n):
        return workflow.continuation(countdown.bind(n - 1)) if n else "liftoff"

    @ray.remote
    def nested(n):
        return workflow.continuation(total.bind([number.bind(i) for i in range(n)]))

    @ray.remote
    def doomed():
        return workflow.continuation(fail.bind("inside", number.bind(2)))

    workflow.run(countdown.bind(4), workflow_id="continuation")
    workflow.run(total.bind([nested.bind(3), nested.bind(4)]), workflow_id="nested")
    workflow.run(number.bind(named(doomed, "doomed", catch_exceptions=True).bind()),
                 workflow_id="continuation-caught")

    # -- forks
    a = named(number, "a").bind(1)
    b = named(number, "b").bind(a)
    workflow.run(named(number, "c").bind(b), workflow_id="origin")
    workflow.get_output(workflow.fork("origin", from_task="b", new_id="fork"))

    # -- timers and events
    @ray.remote
    def after(value, *events):
        return value

    workflow.run(after.bind("woken", workflow.sleep(0.1)), workflow_id="timer")
    workflow.run(after.bind("event", workflow.wait_for_event(workflow.TimerListener,
                                                            time.time() + 0.1)),
                 workflow_id="event")

    # -- large values and objects
    @ray.remote
    def large(n):
        return bytes(range(256)) * n

    @ray.remote
    def objects(n):
        inner = ray.put(bytes(range(100)) * n)
        return [ray.put([inner, "outer"]), inner, "value"]

    @ray.remote
    def measure(data, found):
        return [len(data), len(found)]

    workflow.run(measure.bind(large.bind(1000), objects.bind(3000)), workflow_id="blobs")
    workflow.run(number.bind(bytes(range(256)) * 1000), workflow_id="large-argument")

    # -- time limits
    @ray.remote(max_retries=0)
    def slow():
        time.sleep(60)

    go_wrong(named(slow, "slow", timeout=0.5).bind(), workflow_id="task-timeout")
    go_wrong(slow.bind(), workflow_id="workflow-timeout", timeout=0.5)

    # -- unstored results
    kept = named(number, "not-stored", checkpoint=False).bind(5)
    workflow.run(named(number, "stored").bind(kept), workflow_id="unstored")

    # -- canceled, and resumed
    for name in ("canceled", "canceled-resumed"):
        workflow.run_async(held.bind(name), workflow_id=name)
        marks.wait_for("held", 1 if name == "canceled" else 2)
        workflow.cancel(name)

    @ray.remote(max_retries=0)
    def mended():
        import os
        if not os.path.exists(os.path.join({directory!r}, "gate")):
            raise ValueError("not yet")
        return "mended"

    go_wrong(number.bind(mended.bind()), workflow_id="failure-resumed")

    # -- interrupted
    kept = named(number, "not-stored", checkpoint=False).bind(6)
    waiting = named(held, "held").bind("done", named(number, "stored").bind(kept), kept)
    workflow.run_async(waiting, workflow_id="interrupted")
    workflow.run_async(waiting, workflow_id="interrupted-resumed")
    marks.wait_for("held", 4)
    time.sleep(2)
    print("killed here", flush=True)
    time.sleep(600)
"""

SECOND = """
    gate.open()
    assert workflow.resume("interrupted-resumed") == "done"
    assert workflow.resume("failure-resumed") == "mended"
    assert workflow.resume("canceled-resumed", canceled=True) == "canceled-resumed"
    print("done", flush=True)
"""


def by_hand(storage: SqliteStorage) -> None:
    """What rarely happens: the engine decides it, without a cluster."""
    dag = plan(("fetch", ()), ("total", (0,), {"max_retries": 1, "catch_exceptions": False}))
    error = ErrorInfo("StorageCorruptError", "blob 'x' is missing")
    pending = Driver(dag, start=False, workflow_id="pending", incarnation="i-pending")
    save(storage, pending)
    released = Driver(dag, workflow_id="released", incarnation="i-released")
    start = released.flying[0]
    released.send(
        msg.AttemptFoundCorruption(
            task=start.task,
            epoch=start.epoch,
            attempt=start.attempt,
            started_at=1000.0,
            ended_at=1001.0,
            error=error,
        )
    )
    save(storage, released)
    lost = Driver(dag, workflow_id="values-lost", incarnation="i-values-lost")
    lost.succeed_unstored("fetch")
    lost.report(msg.AttemptLostInput, "total", error=error, lost=(0,))
    save(storage, lost)
    asked = Driver(dag, workflow_id="cancel-requested", incarnation="i-cancel-requested")
    asked.send(msg.AttemptRuns(task=0, epoch=start.epoch, attempt=1, started_at=1000.0))
    asked.send(msg.Cancel(), "h2", driven_elsewhere=True)
    save(storage, asked)
    homeless = Driver(dag, workflow_id="unplaceable", incarnation="i-unplaceable")
    homeless.send(msg.FoundUnplaceable(epoch=start.epoch, tasks=(0,), reason="no node has it"))
    save(storage, homeless)
    claimed = Driver(dag, workflow_id="claimed", incarnation="i-claimed")
    claimed.succeed("fetch", b"".join(seal(pickle.dumps([1, 2]), [])))
    claimed.claim("h2")
    claimed.fail("total")
    save(storage, claimed)
    crashed = Driver(dag, workflow_id="crashed", incarnation="i-crashed")
    writer = ValueWriter(storage, "i-crashed")
    crashed.crash("fetch")
    crashed.crash("fetch")
    value = writer.write([1, 2, 3], key="result", where="fetch")
    crashed.report(msg.AttemptReturned, "fetch", value=value)
    save(storage, crashed)


def with_signals(storage: SqliteStorage) -> None:
    """Signals that are taken, kept, of a guest, too late, and large."""
    dag = plan(
        *(wait("early", "a"), wait("second", "a"), wait("large", "b")),
        wait("in-vain", "c", timeout=5.0, catch_exceptions=True),
        ("total", (0, 1, 2, 3)),
    )
    story = Driver(dag, start=False, workflow_id="signals", incarnation="i-signals")
    writer = ValueWriter(storage, "i-signals")
    for number, (name, value) in enumerate(
        [("a", 1), ("b", bytes(range(256)) * 1000), ("a", 2), ("a", 3), ("d", None)]
    ):
        story.now += 1.0
        stored = writer.write(value, key=f"signal-{number}", where=f"signal {name}")
        story.send(msg.Signal(name=name, signal_id=f"id-{number}", value=stored))
        if number == 1:
            story.send(msg.Start())
        story.send(msg.Wake())
    story.now += 10.0
    story.send(msg.Wake())
    story.send(msg.Cancel(), "h2", driven_elsewhere=True)
    save(storage, story)
    ended = Driver(plan(wait("only", "a")), workflow_id="signal-ends", incarnation="i-signal-ends")
    stored = ValueWriter(storage, "i-signal-ends").write("the end", key="signal", where="signal a")
    ended.send(msg.Signal(name="a", signal_id="id", value=stored))
    ended.send(msg.Wake())
    save(storage, ended)
    failed = Driver(
        plan(wait("only", "a", timeout=5.0)),
        workflow_id="signal-timeout",
        incarnation="i-signal-timeout",
    )
    failed.now += 5.0
    failed.send(msg.Wake())
    save(storage, failed)
    with_http_events(storage)


def with_http_events(storage: SqliteStorage) -> None:
    """Events by HTTP: one that a listener has had, one that waits in front of its listener."""
    listeners = [(task, (), {"kind": LISTENER}) for task in ("first", "second")]
    story = Driver(
        plan(*listeners, ("total", (0, 1))), workflow_id="http-events", incarnation="i-http-events"
    )
    writer = ValueWriter(storage, "i-http-events")
    for key in ("paid", "sent"):
        story.now += 1.0
        event = writer.write(b'{"by": "Ada"}', key=f"signal-{key}", where="event")
        story.send(msg.Signal(f"http-event:{key}", f"digest of {key}", event, sole=True))
    pair = writer.write(("paid", {"by": "Ada"}), key="first", where="first")
    story.report(msg.AttemptReturned, "first", value=pair)
    story.send(msg.AcknowledgeSignals("http-event:paid"))
    save(storage, story)


def with_snapshots(storage: SqliteStorage) -> None:
    """A snapshot of a state in which there is everything, and one of its lifecycle."""
    dag = plan(
        ("fetch", ()),
        ("loop", (0,)),
        ("fails", (0,), {"max_retries": 3}),
        wait("waits", "a", timeout=50.0),
        ("total", (1, 2, 3)),
    )
    story = Driver(dag, timeout=100.0, workflow_id="snapshots", incarnation="i-snapshots")
    value = ValueWriter(storage, "i-snapshots").write({"n": 1}, key="value", where="fetch")
    story.report(msg.AttemptReturned, "fetch", value=value)
    story.go_on("loop", plan(("inner", ()), ("last", (0,))))
    story.crash("fails")
    story.send(msg.Signal(name="b", signal_id="kept", value=value))
    story.claim("h2")
    story.journal.append(snapshots.save(story.state, story.now, None))
    story.report(msg.AttemptReturned, "inner", value=value)
    story.journal.append(snapshots.save(story.state, story.now, len(story.journal)))
    story.send(msg.Signal(name="a", signal_id="taken", value=value))
    story.send(msg.Wake())
    save(storage, story)


def with_tags(storage: SqliteStorage) -> None:
    """Tags from the start, and others since."""
    story = Driver(plan(("first", ())), workflow_id="tags", incarnation="i-tags", tags={"n": 5})
    story.send(msg.SetTags({"team": "vision", "on": True, "n": None, "x": 0.5}))
    save(storage, story)


def with_messages(storage: SqliteStorage) -> None:
    """A task that starts two workflows: one is there, and the id of the other is in use."""
    story = Driver(plan(("first", ())), workflow_id="messages", incarnation="i-messages")
    messages = [OutboxMessage(f"i-messages-0-{n}", f"child-{n}", Value(b"{}")) for n in range(2)]
    value = ValueWriter(storage, "i-messages").write(1, key="first", where="first")
    story.report(msg.AttemptReturned, "first", value=value, messages=tuple(messages))
    story.send(msg.Delivered("i-messages-0-0"))
    refusal = ErrorInfo("WorkflowAlreadyExistsError", "Workflow[id=child-1] exists.")
    story.send(msg.Delivered("i-messages-0-1", refusal))
    save(storage, story)


def with_bodies(storage: SqliteStorage) -> None:
    """Bodies of durable functions: with steps of each kind, one canceled and one failed; and one
    that waits for its steps."""
    dag = plan(("body", (), {"kind": BODY, "max_retries": 3, "retry_exceptions": True}))
    story = BodyDriver(dag, workflow_id="bodies", incarnation="i-bodies")
    value = ValueWriter(storage, "i-bodies").write([1, 2], key="value", where="step")
    seed = StepRecord(step("random", kind=StepKind.MARK), mark=Outcome(value))
    story.ask(
        *((step(name), task(name)) for name in ("one", "unwanted", "fails")),
        (step("wait"), plan(wait("wait", "go"))),
        marks=(seed,),
    )
    story.end_local("local", outcome=Outcome(value))
    story.tell(canceled=(CanceledStep("unwanted", 1),))
    story.report(msg.AttemptReturned, "one", value=value)
    story.fail("fails")
    story.raise_error("fails", retryable=True)
    story.suspend(2)
    story.send(msg.Signal("go", "id", value))
    story.send(msg.Wake())
    story.ask((step("fails"), task("again")))
    story.report(msg.AttemptReturned, "again", value=value)
    story.report(msg.AttemptReturned, "body", value=value)
    save(storage, story)
    waiting = BodyDriver(dag, workflow_id="body-waits", incarnation="i-body-waits")
    waiting.ask((step("inner"), task("inner", kind=BODY)), (step("two"), task("two")))
    waiting.body = "inner"
    waiting.ask_for("deep")
    waiting.suspend(0)
    waiting.body = "body"
    waiting.suspend(0)
    waiting.report(msg.AttemptReturned, "two", value=Value(b"".join(seal(pickle.dumps(2), []))))
    waiting.send(msg.Cancel())
    save(storage, waiting)


def wait(task: str, name: str, **options: object) -> tuple[str, tuple[int, ...], dict[str, object]]:
    return task, (), {"kind": SIGNAL, "signal": name, **options}


def save(storage: SqliteStorage, story: Driver) -> None:
    row = catalog_row(story.state, len(story.journal))
    link = NO_LINK
    for seq, event in enumerate(story.journal):
        entry = encode_entry([event], row.workflow_id, row.incarnation, seq + 1, link)
        link = link_of(entry)
        append = Append(
            workflow_id=row.workflow_id,
            incarnation=row.incarnation,
            expected_seq=seq,
            commit_id=f"c{seq}",
            entry=entry,
            catalog=msgspec.structs.replace(row, seq=seq + 1),
        )
        assert storage.commit([append]) == [OK]


def neutral(value: Any, paths: list[str]) -> Any:
    """Plain data without the paths of the machine that made it."""
    if isinstance(value, str):
        for path in paths:
            value = value.replace(path, "/home/user")
        return value
    if isinstance(value, bytes):
        # A pickle knows how long its strings are.
        for path in paths:
            stand_in = b"/home/user".ljust(len(path), b"/")[: len(path)]
            value = value.replace(path.encode(), stand_in)
        return value
    if isinstance(value, (list, tuple)):
        return [neutral(item, paths) for item in value]
    if isinstance(value, dict):
        return {key: neutral(item, paths) for key, item in value.items()}
    return value


def without_paths(directory: Path, paths: list[str]) -> None:
    """Take the paths out of the journals: nobody's machine is kept for ever."""
    storage = SqliteStorage(directory)
    found = {}
    for row in storage.list_catalog(CatalogQuery()).rows:
        chain, link = Chain(row.workflow_id, row.incarnation), NO_LINK
        for entry in storage.read_journal(row.incarnation):
            events = msgspec.msgpack.decode(msgspec.msgpack.encode(chain.decode(entry)))
            clean = DECODER.decode(msgspec.msgpack.encode(neutral(events, paths)))
            data = encode_entry(clean, row.workflow_id, row.incarnation, entry.seq, link)
            found[row.incarnation, entry.seq] = data
            link = link_of(data)
    with storage.journals.home.writer.transaction() as connection:
        for (incarnation, seq), data in found.items():
            connection.execute(
                "UPDATE journal SET entry = ? WHERE incarnation = ? AND seq = ?",
                (data, incarnation, seq),
            )
        rows = connection.execute("SELECT id, error FROM catalog WHERE error IS NOT NULL")
        for number, error in rows.fetchall():
            text = neutral(error, paths)
            connection.execute("UPDATE catalog SET error = ? WHERE id = ?", (text, number))
    storage.close()


def write_records() -> None:
    """Write down which fields the records have, in their order."""
    from tests.journals.test_journals import PARTS

    records = {
        kind.__name__: {
            "tag": kind.__struct_config__.tag,
            "fields": list(kind.__struct_fields__),
        }
        for kind in (*ev.AnyEvent.__args__, *PARTS)
    }
    path = DIRECTORY / "records.json"
    path.write_text(json.dumps(records, indent=1) + "\n")


def main() -> None:
    write_records()
    if "--records" in sys.argv:
        return
    release = DIRECTORY / ray_workflows.__version__
    if "--by-hand" in sys.argv:
        write_by_hand(release)
        return
    if any(release.glob("*.json")) and "--again" not in sys.argv:
        sys.exit(f"{release} is there. A release that is out is never written again.")
    release.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="golden-"))
    os.chdir(directory)
    prologue = PROLOGUE.replace("{directory!r}", repr(str(directory)))
    first = FIRST.replace("{directory!r}", repr(str(directory)))
    with DriverProcess(directory, prologue + first, **OWN_CODE) as driver:
        driver.wait_for_text("killed here", 400)
        driver.kill_all()
    with DriverProcess(directory, prologue + SECOND, **OWN_CODE) as driver:
        assert "done" in driver.wait(300)
    storage = SqliteStorage("store")
    by_hand(storage)
    with_signals(storage)
    storage.close()
    # An editable installation is somewhere else than this tree.
    installed = [path for path in sys.path if path.endswith("/src")]
    roots = [str(directory), str(DIRECTORY.parents[1]), sys.prefix, sys.base_prefix]
    paths = [path for path in (*installed, *roots) if len(path) > 4]
    without_paths(directory / "store", sorted(paths, key=len, reverse=True))
    storage = SqliteStorage("store")
    dump_all(storage, release)
    storage.close()


def write_by_hand(release: Path) -> None:
    release.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="golden-") as directory:
        storage = SqliteStorage(directory)
        storage.open()
        by_hand(storage)
        with_signals(storage)
        with_snapshots(storage)
        with_tags(storage)
        with_messages(storage)
        with_bodies(storage)
        dump_all(storage, release, leave=True)
        storage.close()


def dump_all(storage: SqliteStorage, release: Path, *, leave: bool = False) -> None:
    """Write a file of each workflow. ``leave``: not of those that have one."""
    for row in storage.list_catalog(CatalogQuery()).rows:
        path = release / f"{row.workflow_id}.json"
        if leave and path.exists():
            continue
        golden = dump(storage, row.workflow_id, f"release {ray_workflows.__version__}")
        path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
        print(path.name, golden["seen"]["status"], path.stat().st_size)


if __name__ == "__main__":
    main()

"""Workflows in a real SQLite store: the engine decides their events, nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ray_workflows._capture.values import ValueWriter
from ray_workflows._codec.journal import encode_entry
from ray_workflows._coordinator.liveness import LEASE_SECONDS, this_holder
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Append, CatalogRow
from ray_workflows._model.plan import Environment, Plan
from ray_workflows.storage import SqliteStorage
from ray_workflows.testing.builders import OK, make_holder
from tests.unit.driver import Driver
from tests.unit.plans import plan

#: A pause between the events of a workflow, in seconds.
STEP = 2.0

PLAN = plan(("fetch", ()), ("total", (0,), {"max_retries": 3}))


class Store:
    """The store, and short ways to write to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.storage = SqliteStorage(directory)
        self.storage.open()

    def story(
        self, workflow_id: str, *, ago: float = 3600.0, plan: Plan = PLAN, directory: str = ""
    ) -> Driver:
        """A workflow that was submitted this many seconds ago, of which no task has run yet."""
        if directory:
            environment = Environment(python_path=(directory,))
            plan = msgspec.structs.replace(plan, environment=environment)
        incarnation = f"i-{workflow_id.encode().hex()[-150:]}"
        now = self.storage.now() - ago
        return Driver(plan, workflow_id=workflow_id, incarnation=incarnation, now=now)

    def save(self, story: Driver) -> CatalogRow:
        """Store a workflow as far as it is, an entry for each event."""
        state = story.state
        row = catalog_row(state, len(story.journal))
        appends = [
            Append(
                workflow_id=state.workflow_id,
                incarnation=state.incarnation,
                expected_seq=seq,
                commit_id=f"c{seq}",
                entry=encode_entry([event], row.workflow_id, row.incarnation, seq + 1),
                catalog=msgspec.structs.replace(row, seq=seq + 1),
            )
            for seq, event in enumerate(story.journal)
        ]
        assert self.storage.commit(appends) == [OK] * len(appends)
        return row

    def give(self, story: Driver, task: str, value: Any) -> None:
        """Let a task return a Python value, two seconds after it started."""
        writer = ValueWriter(self.storage, story.state.incarnation)
        stored = writer.write(value, key=f"result-{task}", where=task)
        start = story.flying.pop(story.number(task))
        story.now += STEP
        story.send(
            msg.AttemptReturned(
                task=start.task,
                epoch=start.epoch,
                attempt=start.attempt,
                started_at=story.now - STEP,
                ended_at=story.now,
                value=stored,
            )
        )

    # -- whole workflows -------------------------------------------------------------------

    def successful(self, workflow_id: str, output: Any = 42, **where: Any) -> CatalogRow:
        story = self.story(workflow_id, **where)
        self.give(story, "fetch", [1, 2, 3])
        self.give(story, "total", output)
        return self.save(story)

    def failed(self, workflow_id: str, **where: Any) -> CatalogRow:
        story = self.story(workflow_id, **where)
        self.give(story, "fetch", [1, 2, 3])
        story.fail("total", retryable=True)
        story.fail("total")
        return self.save(story)

    def canceled(self, workflow_id: str, **where: Any) -> CatalogRow:
        story = self.story(workflow_id, **where)
        story.send(msg.Cancel())
        return self.save(story)

    def running(self, workflow_id: str, **where: Any) -> CatalogRow:
        """Running, if its holder ``h1`` lives: see `hold`; else interrupted."""
        story = self.story(workflow_id, **where)
        self.give(story, "fetch", [1, 2, 3])
        return self.save(story)

    def hold(self, lease: float = LEASE_SECONDS) -> None:
        """Let this process be the holder ``h1``."""
        me = this_holder("c1")
        fields = {"coordinator": "c1", "host": me.host, "pid": me.pid}
        holder = make_holder("h1", started_ticks=me.started_ticks, **fields)
        self.storage.renew_holder(holder, lease)

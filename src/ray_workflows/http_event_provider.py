"""Events by HTTP: `HTTPListener` waits for them, `HTTPEventProvider` receives them.

The provider is a Ray Serve application; importing this module needs ``pip install "ray[serve]"``.
An event is a signal to its workflow: it is in the workflow's journal before it is answered. So no
event is lost with the provider, and none comes too early.
"""

# No annotations from __future__: FastAPI must find the types of parameters in a worker.

import asyncio
import hmac
import inspect
import json
import logging
import math
import os
import threading
import time
from typing import Any

from ray_workflows._client import connection
from ray_workflows._client.http_events import EventTakenError, HTTPEvents
from ray_workflows._client.http_requests import (
    MAX_BODY_BYTES,
    Refused,
    read_event,
    received,
    wait_seconds,
    why_refused,
)
from ray_workflows._client.http_waiting import News, Takers
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows.common import HTTP_EVENT_PROVIDER_NAME
from ray_workflows.events import Event, EventListener
from ray_workflows.exceptions import (
    CoordinatorUnavailableError,
    InvalidWorkflowIdError,
    PicklableWorkflowError,
    SignalRefusedError,
    StorageCorruptError,
    StorageError,
    WorkflowNotFoundError,
)
from ray_workflows.workflow_context import get_current_task_id, get_current_workflow_id

try:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from ray import serve
except ImportError as _missing:
    raise ImportError(
        f"ray_workflows.http_event_provider needs Ray Serve with FastAPI ({_missing}). Install it: "
        f'pip install "ray[serve]"'
    ) from _missing

logger: logging.Logger = logging.getLogger(__name__)

__all__ = ["HTTPEventProvider", "HTTPListener", "WorkflowEventHandleError"]

#: The path of the provider below the address of Ray Serve.
ROUTE_PREFIX = "/event"

#: The longest poll of a listener, in seconds. Each writes a line to Serve's log.
POLL_SECONDS = 300.0

#: The most requests served at once: waiting senders and listeners.
MAX_REQUESTS = 10_000

#: The most events and other signals of one workflow that are kept while no task waits for them.
MAX_EARLY_EVENTS = 1_000

#: The variable with the token that requests must carry, for a provider that a listener deploys.
TOKEN_VARIABLE = "RAY_WORKFLOWS_EVENT_TOKEN"

#: Pauses of a listener whose provider does not answer, in seconds.
FIRST_PAUSE, LAST_PAUSE = 0.1, 5.0

#: The least time between two warnings of one process of a provider that is away, in seconds.
WARNING_SECONDS = 60.0


class WorkflowEventHandleError(PicklableWorkflowError):
    """An event can't be waited for."""

    def __init__(self, workflow_id: str, what_happened: str):
        super().__init__(f"Workflow[id={workflow_id}] HTTP event handle failed: {what_happened}")
        self.workflow_id = workflow_id


def find_workflow(workflow_id: str) -> Any:
    """The events of a workflow of this cluster, as `HTTPEvents`; None if there is no such workflow.

    Raises:
        CoordinatorUnavailableError: there are no workflows here.
        StorageError: the storage does not answer.
    """
    if connection.find_coordinator() is None:
        # Don't start a coordinator here: only the application knows its storage.
        raise CoordinatorUnavailableError("No workflow was started on this cluster yet.")
    connected = connection.connect()
    row = connected.storage.read_catalog(workflow_id)
    return None if row is None else HTTPEvents(connected, row)


def used_again(workflow_id: str, key: str, how: str) -> WorkflowEventHandleError:
    """The error of a second task that waits for an event."""
    return WorkflowEventHandleError(
        workflow_id,
        f"The same event_key {key!r} is used to get payload again, {how}. Wait once, and bind both "
        f"to it, or use another key.",
    )


def error_response(code: int, message: str) -> JSONResponse:
    """An answer that says what is wrong."""
    return JSONResponse(status_code=code, content={"error": {"code": code, "message": message}})


def check_application(name: str, replicas: int) -> None:
    """Refuse a provider that listeners would not find, or find only one replica of: its senders
    would wait, and its events reach no task for minutes.

    Raises:
        RuntimeError: says how to deploy it.
    """
    if name != HTTP_EVENT_PROVIDER_NAME:
        raise RuntimeError(
            f"Listeners can't find an HTTPEventProvider in an application named {name!r}. Deploy "
            f"it with serve.run(..., name={HTTP_EVENT_PROVIDER_NAME!r}): that is "
            f"ray_workflows.common.HTTP_EVENT_PROVIDER_NAME. The route may be any."
        )
    if replicas > 1:
        raise RuntimeError(
            f"An HTTPEventProvider has one replica, not {replicas}: listeners that ask one would "
            f"not learn of events that another one receives. Leave num_replicas and "
            f"autoscaling_config out."
        )


# Ray Serve copies the routes and the functions that they use while the class below is created, so
# these functions have to be defined above it.
app: FastAPI = FastAPI()


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=MAX_REQUESTS,
    # Clients that wait poll again, so a replica that stops need not wait for them.
    graceful_shutdown_timeout_s=2.0,
    ray_actor_options={"num_cpus": 0},
)
@serve.ingress(app)
class HTTPEventProvider:
    """Receives events for workflows: ``POST /event/send_event/{workflow_id}``.

    The body is JSON, ``{"event_key": "a-key", "event_payload": ...}``; a task of the workflow that
    waits by ``workflow.wait_for_event(HTTPListener, event_key="a-key")`` produces the pair
    ``("a-key", payload)``. A key names one event of a workflow: repeated requests with the same
    payload change nothing, and are answered as the first.

    The first listener deploys it, on the address of Ray Serve or its default. To receive events
    earlier, or at an address of your choice, deploy it yourself, with one replica, in an
    application of the name that listeners look for.

    Answers:

    - 200: a task has the event as its durable result.
    - 202: it is in the workflow's journal, and no task has taken it within 30 s, or the time that
      the request gives by ``Prefer: wait=seconds``. It stays, and a task that waits for it later
      will get it, unless the workflow is deleted before.
    - 401: the request does not carry the provider's token, if it has one.
    - 400: no JSON object, or a field is missing or of a wrong type.
    - 404: there is no such workflow.
    - 409: this key was sent with another payload before, which stays.
    - 410: the workflow has finished or was canceled without this event.
    - 413: more than 1 MiB.
    - 429: 1,000 events and signals of this workflow are kept that no task has taken, and no task
      waits for this one.
    - 500: a listener reported that it could not handle the event.
    - 503: the storage, or the cluster's coordinator, does not answer. Send it again.

    Errors have a body ``{"error": {"code": ..., "message": ...}}``.

    Args:
        token: requests must carry it, as ``Authorization: Bearer <token>``. Without one, anybody
            who reaches the address can send events to every workflow of the cluster. A provider
            that a listener deploys uses the environment variable ``RAY_WORKFLOWS_EVENT_TOKEN`` of
            the listener, if there is one.

    Raises:
        RuntimeError: in the replica, and in Serve's log: the application has another name than
            ``HTTP_EVENT_PROVIDER_NAME``, or several replicas.

    Examples:
        Deploying it on an address of your choice, in a driver::

            from ray import serve
            from ray_workflows.common import HTTP_EVENT_PROVIDER_NAME
            from ray_workflows.http_event_provider import HTTPEventProvider

            serve.start(http_options={"host": "127.0.0.1", "port": 8000})
            serve.run(
                HTTPEventProvider.bind(token), name=HTTP_EVENT_PROVIDER_NAME, route_prefix="/event"
            )
    """

    def __init__(self, token: str | None = None) -> None:
        context = serve.get_replica_context()
        # Older versions of Ray do not say how many replicas there are.
        check_application(context.app_name, getattr(context, "world_size", 1))
        self.token = token
        self.news = News()
        self.takers = Takers()
        #: Events that a listener could not handle, while requests still wait for them.
        self.failed: set[tuple[str, str]] = set()

    @app.post("/send_event/{workflow_id:path}")  # type: ignore[untyped-decorator]
    async def send_event(self, workflow_id: str, req: Request) -> JSONResponse:
        """Receive an event, and answer when the workflow has it."""
        try:
            return await self.receive(workflow_id, req)
        except Refused as refused:
            return error_response(refused.code, str(refused))
        except InvalidWorkflowIdError as error:
            return error_response(400, str(error))
        except WorkflowNotFoundError:
            return error_response(404, f"Workflow[id={workflow_id}] doesn't exist.")
        except SignalRefusedError as error:
            return error_response(410, why_refused(error))
        except (StorageError, CoordinatorUnavailableError) as error:
            return error_response(503, str(error))

    async def receive(self, workflow_id: str, req: Request) -> JSONResponse:
        """As `send_event`; raises errors, which become answers."""
        self.check_token(req.headers.get("authorization", ""))
        body = bytearray()
        async for chunk in req.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise Refused(413, f"The request has more than {MAX_BODY_BYTES} bytes.")
        key, payload = read_event(bytes(body))
        events = await asyncio.to_thread(find_workflow, validate_workflow_id(workflow_id))
        if events is None:
            raise WorkflowNotFoundError(workflow_id)
        event = (events.incarnation, key)
        most = None if self.news.is_awaited(*event) else MAX_EARLY_EVENTS
        answer = await asyncio.to_thread(events.send, key, payload, most=most)
        if received(answer, workflow_id, key).taken:
            return JSONResponse(status_code=200, content={})
        self.failed.discard(event)
        self.news.tell(*event)

        def settled() -> bool:
            return event in self.failed or events.is_taken(key, payload)

        seconds = wait_seconds(req.headers.get("prefer", ""))
        try:
            found = await self.news.wait_until(*event, settled, seconds)
            failed = event in self.failed
        finally:
            if not self.news.is_awaited(*event):
                self.failed.discard(event)
        if not found:
            return JSONResponse(
                status_code=202,
                content={
                    "message": f"The event is stored, and will be given to the task of the "
                    f"workflow that waits for event_key {key!r}. None has taken it within "
                    f"{seconds:.0f} s."
                },
            )
        if failed:
            raise Refused(500, "event processing failed")
        return JSONResponse(status_code=200, content={})

    def check_token(self, header: str) -> None:
        """Refuse a request without the token, before its body is read."""
        if self.token is None:
            return
        scheme, _, given = header.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if scheme.lower() != "bearer" or not same:
            raise Refused(401, "Send the token of this provider: 'Authorization: Bearer <token>'.")

    # -- what listeners call ---------------------------------------------------------------

    async def poll_event(
        self, workflow_id: str, event_key: str, task_id: str | None = None
    ) -> Event | None:
        """The event, as soon as it is there; None after `POLL_SECONDS`.

        Raises:
            WorkflowEventHandleError: another task has this key, the event is damaged, or the
                workflow is gone.
        """
        events = await asyncio.to_thread(find_workflow, workflow_id)
        if events is None:
            raise WorkflowEventHandleError(workflow_id, "the workflow doesn't exist any more.")
        taker = self.takers.take(events.incarnation, event_key, task_id)
        if taker != task_id:
            raise used_again(workflow_id, event_key, f"by task {task_id!r} after {taker!r}")
        try:
            payload: bytes | None = await self.news.wait_until(
                events.incarnation, event_key, lambda: events.find(event_key), POLL_SECONDS
            )
        except EventTakenError:
            raise used_again(workflow_id, event_key, "after it was acknowledged") from None
        except (StorageCorruptError, WorkflowNotFoundError) as error:
            # Permanent: the listener would get it again with each poll.
            raise WorkflowEventHandleError(workflow_id, str(error)) from None
        return None if payload is None else (event_key, json.loads(payload))

    async def get_event_payload(self, workflow_id: str, event_key: str) -> Event:
        """Wait for an event without limit; for listeners of your own."""
        event = None
        while event is None:
            event = await self.poll_event(workflow_id, event_key)
        return event

    async def report_checkpointed(
        self, workflow_id: str, event_key: str, confirmation: bool
    ) -> str:
        """Answer the senders of an event: it is checkpointed, or could not be handled."""
        events = await asyncio.to_thread(find_workflow, workflow_id)
        if events is not None:
            event = (events.incarnation, event_key)
            if confirmation:
                await asyncio.to_thread(events.acknowledge, event_key)
                self.takers.forget(*event)
            elif self.news.is_awaited(*event):
                self.failed.add(event)
            self.news.tell(*event)
        return "OK"


# Serve has made an object of the class, which would show what Serve says of its own class.
HTTPEventProvider.__doc__ = HTTPEventProvider.func_or_class.__doc__  # type: ignore[attr-defined]
HTTPEventProvider.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    HTTPEventProvider.func_or_class  # type: ignore[attr-defined]
)


# -- the listener --------------------------------------------------------------------------

_lock = threading.Lock()
provider: Any = None
#: When a listener of this process has warned of a provider that does not answer.
warned_at: float = -math.inf


def provider_handle(fresh: bool) -> Any:
    """The handle of the provider, which is deployed if there is none. ``fresh``: the last handle
    did not answer, so get a new one."""
    global provider
    with _lock:
        if provider is None or fresh:
            try:
                provider = serve.get_app_handle(HTTP_EVENT_PROVIDER_NAME)
            except serve.exceptions.RayServeException:
                provider = serve.run(
                    HTTPEventProvider.bind(os.environ.get(TOKEN_VARIABLE)),  # type: ignore[attr-defined]
                    name=HTTP_EVENT_PROVIDER_NAME,
                    route_prefix=ROUTE_PREFIX,
                )
        return provider


def warn_of_silence(error: Exception) -> None:
    """Log that the provider does not answer, or can't be deployed. Thousands of listeners in this
    process may try for days, so it is not logged each time."""
    global warned_at
    now = time.monotonic()
    with _lock:
        if now - warned_at < WARNING_SECONDS:
            return
        warned_at = now
    # What a call through Ray has raised, without the lines of Ray's code.
    reason = getattr(error, "cause", None) or error
    remedy = ""
    if isinstance(reason, serve.exceptions.RayServeException):
        remedy = (
            f" If another application has the route {ROUTE_PREFIX}, deploy an HTTPEventProvider at "
            f"another one, in an application named {HTTP_EVENT_PROVIDER_NAME!r}."
        )
    logger.warning(
        "No events by HTTP reach their tasks now. Listeners try again every %.0f s. %s: %s%s",
        LAST_PAUSE,
        type(reason).__name__,
        reason,
        remedy,
    )


class HTTPListener(EventListener):
    """Waits for an event that is sent to the `HTTPEventProvider`.

    Examples:
        ::

            from ray_workflows.http_event_provider import HTTPListener

            event = workflow.wait_for_event(HTTPListener, event_key="approval")
            workflow.run_async(handle.bind(event), workflow_id="order-1")

        and from anywhere, with ``requests``::

            requests.post(
                "http://127.0.0.1:8000/event/send_event/order-1",
                json={"event_key": "approval", "event_payload": "granted"},
            )
    """

    async def poll_for_event(self, event_key: str | None = None) -> Event:
        """Wait for the event. Returns the pair of its key and its payload.

        Args:
            event_key: names it in its workflow. Default: the id of the waiting task.

        Raises:
            WorkflowEventHandleError: another task of the workflow waits, or has waited, for it.
        """
        workflow_id, task_id = get_current_workflow_id(), get_current_task_id()
        pause = FIRST_PAUSE
        fresh = False
        while True:
            try:
                handle = await asyncio.to_thread(provider_handle, fresh)
                event = await handle.poll_event.remote(workflow_id, event_key or task_id, task_id)
            except WorkflowEventHandleError:
                raise
            except Exception as error:
                # The provider, its node or the storage may come back: a wait may take days.
                warn_of_silence(error)
                fresh = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
                continue
            if event is not None:
                return tuple(event)
            fresh, pause = False, FIRST_PAUSE

    async def event_checkpointed(self, event: Event) -> None:
        """Record that the event is checkpointed, and answer its senders."""
        workflow_id, (event_key, _) = get_current_workflow_id(), event

        def acknowledge() -> None:
            events = find_workflow(workflow_id)
            if events is not None:
                events.acknowledge(event_key)

        # First in the journal: the workflow must go on even if the provider never returns, and a
        # repeated event must be answered with success.
        await asyncio.to_thread(acknowledge)
        try:
            handle = await asyncio.to_thread(provider_handle, False)
            await handle.report_checkpointed.remote(workflow_id, event_key, True)
        except Exception as error:
            logger.warning("Senders of event %r are not answered: %s", event_key, error)

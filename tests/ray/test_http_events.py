"""Events by HTTP, with the real Ray Serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import quote

import pytest
import ray

import ray_workflows as workflow
from ray_workflows.common import HTTP_EVENT_PROVIDER_NAME
from tests.ray.marks import Gate, Marks, wait_until
from tests.support.ports import free_port

try:
    from ray import serve

    from ray_workflows.http_event_provider import HTTPEventProvider, HTTPListener
except ImportError as missing:
    if os.environ.get("CI"):
        raise
    pytest.skip(f"no Ray Serve here: {missing}", allow_module_level=True)

Answer = tuple[int, dict]
Post = Callable[..., "Future[Answer]"]


@pytest.fixture(scope="module")
def address(cluster: None) -> Iterator[str]:
    """Where Ray Serve listens. The provider is deployed by the first listener."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    yield f"http://127.0.0.1:{port}/event/send_event"
    serve.shutdown()


@pytest.fixture
def post(address: str, wid: str, provider: None) -> Iterator[Post]:
    with ThreadPoolExecutor(20) as threads:

        def send(body: object, *, to: str = wid, wait: int | None = None) -> Future[Answer]:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            if wait is not None:
                headers["Prefer"] = f"wait={wait}"
            request = urllib.request.Request(f"{address}/{quote(to)}", data, headers)
            return threads.submit(answer, request)

        yield send


def answer(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or "{}")


def event(payload: object, key: str = "key") -> dict:
    return {"event_key": key, "event_payload": payload}


@ray.remote
def after(event, marks: Marks, gate: Gate):
    marks.add("after")
    gate.wait()
    return event


@ray.remote
def before(gate: Gate):
    gate.wait()
    return "key"


@pytest.fixture(scope="module")
def provider(address: str) -> None:
    """Deployed by a listener, as by a user who does nothing about it."""
    ref = workflow.run_async(
        workflow.wait_for_event(HTTPListener, "x"), workflow_id="who deploys it"
    )
    request = urllib.request.Request(
        f"{address}/who%20deploys%20it", json.dumps(event(0, "x")).encode()
    )

    def answered() -> bool:
        try:
            return answer(request)[0] == 200
        except (OSError, ValueError):
            return False  # Nothing listens there yet.

    wait_until(answered, "the provider", 120)
    assert ray.get(ref) == ("x", 0)


def test_an_event_is_answered_when_it_is_durable(
    post: Post, wid: str, marks: Marks, gate: Gate
) -> None:
    waiting = workflow.wait_for_event(HTTPListener, event_key="key")
    ref = workflow.run_async(after.bind(waiting, marks, gate), workflow_id=wid)
    code, body = post(event({"approved": [True, None]})).result()
    assert (code, body) == (200, {})
    # The workflow has not finished, and nobody needs the provider any more.
    done = [task.status.value for task in workflow.get_tasks(wid) if task.attempts]
    assert done[0] == "SUCCESSFUL"
    assert workflow.get_status(wid) == "RUNNING"
    gate.open()
    assert ray.get(ref) == ("key", {"approved": [True, None]})


def test_the_same_event_again(post: Post, wid: str) -> None:
    ref = workflow.run_async(workflow.wait_for_event(HTTPListener, "key"), workflow_id=wid)
    both = [post(event("payload")), post(event("payload"))]
    assert [sent.result()[0] for sent in both] == [200, 200]
    assert ray.get(ref) == ("key", "payload")
    # Also when the workflow has long finished: who lost the answer asks again.
    assert post(event("payload")).result()[0] == 200
    code, body = post(event("another")).result()
    assert (code, body["error"]["code"]) == (409, 409)
    assert "another payload" in body["error"]["message"]


def test_an_event_that_comes_before_its_wait_is_kept(post: Post, wid: str, gate: Gate) -> None:
    waiting = workflow.wait_for_event(HTTPListener, before.bind(gate))
    ref = workflow.run_async(waiting, workflow_id=wid)
    code, body = post(event("early"), wait=0).result()
    assert code == 202
    assert "'key'" in body["message"]
    patient = post(event("early"))
    gate.open()
    assert patient.result()[0] == 200
    assert ray.get(ref) == ("key", "early")


def kill_provider() -> None:
    names = [
        found["name"]
        for found in ray.util.list_named_actors(all_namespaces=True)
        if "HTTPEventProvider" in found["name"]
    ]
    assert names
    for name in names:
        ray.kill(ray.get_actor(name, namespace="serve"))


def test_a_provider_that_dies_loses_nothing(post: Post, wid: str, gate: Gate) -> None:
    early = workflow.wait_for_event(HTTPListener, before.bind(gate))
    late = workflow.wait_for_event(HTTPListener, "late")

    @ray.remote
    def both(*events):
        return events

    ref = workflow.run_async(both.bind(early, late), workflow_id=wid)
    assert post(event("kept"), wait=0).result()[0] == 202
    kill_provider()
    gate.open()

    def sent() -> bool:
        try:
            return post(event("payload", "late")).result()[0] == 200
        except (OSError, ValueError):
            return False  # Serve starts it anew.

    wait_until(sent, "the late event", 90)
    assert ray.get(ref) == (("key", "kept"), ("late", "payload"))
    assert post(event("kept")).result()[0] == 200


def test_the_key_is_the_tasks_id_by_default(post: Post, wid: str) -> None:
    ref = workflow.run_async(workflow.wait_for_event(HTTPListener), workflow_id=wid)
    key = workflow.get_tasks(wid)[0].task_id
    assert post(event(1, key)).result()[0] == 200
    assert ray.get(ref) == (key, 1)


def test_a_key_is_for_one_task(post: Post, wid: str) -> None:
    from ray_workflows.http_event_provider import WorkflowEventHandleError

    @ray.remote
    def both(*events):
        return events

    twice = [workflow.wait_for_event(HTTPListener, "key") for _ in range(2)]
    with pytest.raises(workflow.WorkflowExecutionError) as raised:
        workflow.run(both.bind(*twice), workflow_id=wid)
    assert isinstance(raised.value.__cause__, WorkflowEventHandleError)
    assert "Wait once" in str(raised.value.__cause__)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not json", "not JSON"),
        (b"\xff", "not JSON"),
        ([1], "no object"),
        ({"event_payload": 1}, "'event_key' field is not found"),
        ({"event_key": "key"}, "'event_payload' field is not found"),
        ({"event_key": 5, "event_payload": 1}, "not 5"),
        ({"event_key": "", "event_payload": 1}, "not empty"),
    ],
)
def test_bad_requests(post: Post, body: object, message: str) -> None:
    code, answered = post(body).result()
    assert code == 400
    assert message in answered["error"]["message"]


def test_other_refusals(post: Post, wid: str) -> None:
    code, body = post(event(1)).result()
    assert code == 404
    assert wid in body["error"]["message"]
    assert post(event("x" * 2_000_000)).result()[0] == 413
    assert post(event(1), to="x" * 600).result()[0] == 400

    @ray.remote
    def one():
        return 1

    workflow.run(one.bind(), workflow_id=wid)
    assert post(event(1)).result()[0] == 410


def test_an_event_that_the_workflow_ends_without(post: Post, wid: str, gate: Gate) -> None:
    ref = workflow.run_async(before.bind(gate), workflow_id=wid)
    assert post(event("kept"), wait=0).result()[0] == 202
    patient = post(event("kept"), wait=3)
    gate.open()
    ray.get(ref)
    assert patient.result()[0] == 410
    assert post(event("kept")).result()[0] == 410


def test_events_that_nobody_waits_for_are_bounded(
    post: Post, wid: str, gate: Gate, marks: Marks
) -> None:
    from ray_workflows.http_event_provider import MAX_EARLY_EVENTS

    waiting = workflow.wait_for_event(HTTPListener, before.bind(gate))
    ref = workflow.run_async(waiting, workflow_id=wid)
    sent = [post(event(i, f"{i}"), wait=0) for i in range(MAX_EARLY_EVENTS)]
    assert {future.result()[0] for future in sent} == {202}
    assert post(event("one more", "one more"), wait=0).result()[0] == 429
    gate.open()
    # What is waited for comes through nevertheless.
    wait_until(lambda: post(event("key")).result()[0] == 200, "the event that is waited for")
    assert ray.get(ref) == ("key", "key")


def test_deleting_a_workflow_deletes_its_events(post: Post, wid: str) -> None:
    def run(payload):
        ref = workflow.run_async(workflow.wait_for_event(HTTPListener, "key"), workflow_id=wid)
        assert post(event(payload)).result()[0] == 200
        return ray.get(ref)

    assert run("first") == ("key", "first")
    workflow.delete(wid)
    assert run("second") == ("key", "second")


@pytest.mark.parametrize("missing", ["fastapi", "ray.serve"])
def test_what_is_missing_is_named(missing: str) -> None:
    code = f"""
import sys
import ray_workflows
assert "fastapi" not in sys.modules and "ray.serve" not in sys.modules
sys.modules[{missing!r}] = None
try:
    import ray_workflows.http_event_provider
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "ray[serve]"' in done.stdout


def test_a_provider_in_an_application_of_another_name_is_refused(address: str) -> None:
    with pytest.raises(RuntimeError, match="Deploying application events failed"):
        serve.run(HTTPEventProvider.bind(), name="events", route_prefix="/events")
    (deployment,) = serve.status().applications["events"].deployments.values()
    assert f"Deploy it with serve.run(..., name={HTTP_EVENT_PROVIDER_NAME!r})" in deployment.message
    serve.delete("events")


def test_a_provider_with_a_token(address: str, wid: str) -> None:
    # At another address, in place of the one that a listener may have deployed.
    bound = HTTPEventProvider.bind("t0ken")
    serve.run(bound, name=HTTP_EVENT_PROVIDER_NAME, route_prefix="/guarded")
    ref = workflow.run_async(workflow.wait_for_event(HTTPListener, "key"), workflow_id=wid)
    url = address.replace("/event/", "/guarded/")
    body = json.dumps(event(1)).encode()
    for headers, code in (({}, 401), ({"Authorization": "Bearer t0ken"}, 200)):
        request = urllib.request.Request(f"{url}/{quote(wid)}", body, headers)
        assert answer(request)[0] == code
    assert ray.get(ref) == ("key", 1)
    # As a listener deploys it.
    serve.run(HTTPEventProvider.bind(), name=HTTP_EVENT_PROVIDER_NAME, route_prefix="/event")

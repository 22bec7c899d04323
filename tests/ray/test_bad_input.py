"""Bad input raises at the call, says what is wrong and what to do, and leaves nothing behind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.dag import InputNode

import ray_workflows as workflow
from ray_workflows._client.connection import LEASE_VARIABLE, lease_seconds
from tests.ray.processes import DriverProcess


@ray.remote
def one():
    return 1


@ray.remote
def same(x):
    return x


@ray.remote
class Counter:
    def add(self):
        return 1


class Unpicklable:
    def __init__(self) -> None:
        # Not a lock: an import of Ray Serve makes those picklable.
        self.settings = {"deep": [1, (x for x in ())]}


@pytest.fixture(autouse=True)
def nothing_left_behind(storage_dir: Path) -> Iterator[None]:
    """No row, no blob directory and no broken actor, whatever the test did."""

    def snapshot() -> tuple[int, set[str]]:
        blobs = storage_dir / "blobs"
        directories = {p.name for p in blobs.iterdir()} if blobs.exists() else set()
        return len(workflow.list_all()), directories

    before = snapshot()
    yield
    assert snapshot() == before
    # The coordinator still works.
    workflow.run(one.bind(), workflow_id="still works")
    workflow.delete("still works")


@pytest.mark.parametrize(
    ("dag", "hint"),
    [
        (lambda: 5, "not int"),
        (lambda: None, "not NoneType"),
        (lambda: one, "call .bind"),
        (lambda: lambda: 1, "@ray.remote"),
        (functools.partial(one.remote), "use .bind"),
        (lambda: [one.bind()], "not list"),
    ],
)
def test_not_a_dag(dag: Callable[[], object], hint: str) -> None:
    for verb in (workflow.run, workflow.run_async):
        with pytest.raises(TypeError, match=f"Input should be a DAG, .*{hint}"):
            verb(dag())


def test_actor_nodes() -> None:
    actor = Counter.bind()
    with pytest.raises(TypeError, match="does not support classes as DAG inputs"):
        workflow.run(actor)
    with pytest.raises(TypeError, match="does not support classes as DAG inputs"):
        workflow.run(actor.add.bind())
    with pytest.raises(TypeError, match="Unsupported DAG node: ClassMethodNode"):
        workflow.run(same.bind(actor.add.bind()))


def test_arguments_that_a_function_does_not_take(wid: str) -> None:
    @ray.remote
    def add(a, b):
        return a + b

    for node, why in (
        (add.bind(1), "missing a required argument: 'b'"),
        (add.bind(1, 2, 3), "too many positional arguments"),
        (add.bind(1, 2, x=3), "got an unexpected keyword argument 'x'"),
        (same.bind(add.bind(1)), "missing a required argument: 'b'"),
    ):
        with pytest.raises(TypeError, match=f"add' can't be called as it was bound: {why}"):
            workflow.run(node, workflow_id=wid)
        with pytest.raises(workflow.WorkflowNotFoundError):
            workflow.get_status(wid)


def test_a_missing_dag_input() -> None:
    with InputNode() as inputs:
        dag = same.bind(inputs.x)
    with pytest.raises(ValueError, match="takes the input 'x', which was not given"):
        workflow.run(dag)
    with InputNode() as inputs:
        dag = same.bind(inputs[2])
    with pytest.raises(ValueError, match=r"takes input\[2\], but 1 positional"):
        workflow.run(dag, 1)
    with InputNode() as whole:
        dag = same.bind(whole)
    with pytest.raises(ValueError, match="none was given"):
        workflow.run(dag)


def test_unknown_options() -> None:
    with pytest.raises(ValueError, match=r"Invalid option keywords \['retries'\].*task_id"):
        workflow.options(retries=3)
    with pytest.raises(ValueError, match="task_id must be a non-empty string"):
        workflow.options(task_id="")
    with pytest.raises(ValueError, match="checkpoint must be True or False"):
        workflow.options(checkpoint="yes")
    with pytest.raises(ValueError, match="above @ray.remote"):
        workflow.options(task_id="x")(lambda: 1)


def test_several_returns() -> None:
    with pytest.raises(ValueError, match="can only have one return"):
        workflow.run(one.options(num_returns=2).bind())
    assert workflow.continuation(one.options(num_returns=1).bind()) == 1


@pytest.mark.parametrize("metadata", [{"a": object()}, {"a": {1, 2}}, {"a": float("nan")}])
def test_metadata_that_is_not_json(metadata: dict) -> None:
    with pytest.raises(ValueError, match="metadata must be JSON serializable"):
        workflow.run(one.bind(), metadata=metadata)
    with pytest.raises(ValueError, match="metadata must be JSON serializable"):
        workflow.options(metadata=metadata)


def test_metadata_that_is_no_dict() -> None:
    with pytest.raises(ValueError, match="metadata must be a dict, not list"):
        workflow.run(one.bind(), metadata=[1])


@pytest.mark.parametrize(
    ("workflow_id", "error", "message"),
    [
        ("", ValueError, "empty"),
        ("x" * 513, ValueError, "513 bytes"),
        ("é" * 257, ValueError, "514 bytes"),
        ("a\nb", ValueError, r"control character '\\n' at position 1"),
        ("a\x00", ValueError, "control character"),
        (5, TypeError, "string"),
    ],
)
def test_workflow_ids(workflow_id: object, error: type[Exception], message: str) -> None:
    for verb in (
        lambda: workflow.run(one.bind(), workflow_id=workflow_id),
        lambda: workflow.run_async(one.bind(), workflow_id=workflow_id),
        lambda: workflow.resume(workflow_id),
        lambda: workflow.get_status(workflow_id),
        lambda: workflow.get_output(workflow_id),
        lambda: workflow.get_metadata(workflow_id),
        lambda: workflow.cancel(workflow_id),
        lambda: workflow.delete(workflow_id),
        lambda: workflow.signal(workflow_id, "s"),
    ):
        with pytest.raises(error, match=message):
            verb()


@pytest.mark.parametrize(
    "workflow_id", ["../../etc/passwd", "/", ".", "..", "a b", "ünïcode ☃", "x" * 512, "a'b\"c;--"]
)
def test_odd_ids_work(workflow_id: str, storage_dir: Path) -> None:
    outside = set(storage_dir.parent.rglob("*")) - set(storage_dir.rglob("*"))
    assert workflow.run(one.bind(), workflow_id=workflow_id) == 1
    assert workflow.get_status(workflow_id) == "SUCCESSFUL"
    assert set(storage_dir.parent.rglob("*")) - set(storage_dir.rglob("*")) == outside
    workflow.delete(workflow_id)


@pytest.mark.parametrize(
    "verb",
    [
        workflow.get_status,
        workflow.get_output,
        workflow.get_output_async,
        workflow.get_metadata,
        workflow.resume,
        workflow.resume_async,
        workflow.cancel,
        workflow.delete,
        lambda workflow_id: workflow.signal(workflow_id, "s", bytes(10)),
        lambda workflow_id: workflow.signal(workflow_id, "s", bytes(100_000)),
    ],
)
def test_unknown_workflows(verb: Callable[[str], object]) -> None:
    with pytest.raises(workflow.WorkflowNotFoundError, match="nobody"):
        verb("nobody")
    with pytest.raises(ValueError, match="doesn't exist"):
        verb("nobody")


def test_status_filters() -> None:
    with pytest.raises(ValueError, match="DONE"):
        workflow.list_all("DONE")
    with pytest.raises(TypeError, match="status_filter must be"):
        workflow.list_all(["RUNNING"])
    with pytest.raises(TypeError, match="status_filter contains"):
        workflow.list_all({1})


def test_an_unpicklable_argument() -> None:
    with InputNode() as inputs:
        dag = same.options(**workflow.options(task_id="taker")).bind(inputs[0])
    where = r"input 0 of the DAG.*\.settings\['deep'\]\[1\].*generator"
    with pytest.raises(TypeError, match=where):
        workflow.run(dag, Unpicklable())


def test_an_unpicklable_function() -> None:
    values = (x for x in ())

    @ray.remote
    def takes():
        return values

    with pytest.raises(TypeError, match=r"function of task .*takes.*<closure>\.values"):
        workflow.run(takes.bind())


def test_an_unpicklable_result() -> None:
    @ray.remote
    def make():
        return Unpicklable()

    node = make.options(**workflow.options(task_id="maker")).bind()
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(node, workflow_id="unpicklable")
    cause = caught.value.__cause__
    assert isinstance(cause, workflow.SerializationError)
    assert "result of task 'maker'" in str(cause)
    assert ".settings['deep'][1], of type generator" in str(cause)
    workflow.delete("unpicklable")


def test_a_node_inside_a_container() -> None:
    @ray.remote
    def make():
        return [one.bind()]

    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(make.bind(), workflow_id="container")
    assert isinstance(caught.value.__cause__, workflow.InvalidResultError)
    assert "workflow.continuation" in str(caught.value.__cause__)
    workflow.delete("container")


def test_an_exception_that_does_not_pickle() -> None:
    class Odd(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")
            self.values = (x for x in ())

    @ray.remote
    def fail():
        raise Odd(1, 2)

    with pytest.raises(workflow.WorkflowExecutionError, match="Odd: 1 and 2") as caught:
        workflow.run(fail.bind(), workflow_id="odd")
    assert "Odd: 1 and 2" in str(caught.value.__cause__)
    workflow.delete("odd")


def test_continuation_of_something_else() -> None:
    with pytest.raises(TypeError, match="Input should be a DAG"):
        workflow.continuation(5)


def test_listeners_and_timers() -> None:
    with pytest.raises(TypeError, match="int, which is not a subclass"):
        workflow.wait_for_event(int)
    with pytest.raises(TypeError, match="not a subclass"):
        workflow.wait_for_event(workflow.TimerListener())
    with pytest.raises(TypeError, match="number of seconds"):
        workflow.sleep("1")
    for duration in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="finite"):
            workflow.sleep(duration)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "is empty"),
        ("x" * 513, ValueError, "513 bytes"),
        ("a\nb", ValueError, r"control character '\\n' at position 1"),
        ("\ud800", ValueError, "surrogate"),
        (5, TypeError, "must be a string, not int"),
    ],
)
def test_names_and_ids_of_signals(text: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^name.*{message}"):
        workflow.signal("nobody", text)
    with pytest.raises(error, match=f"^name.*{message}"):
        workflow.wait_for_signal(text)
    with pytest.raises(error, match=f"^signal_id.*{message}"):
        workflow.signal("nobody", "s", signal_id=text)


def test_signals_that_are_not_named() -> None:
    with pytest.raises(TypeError, match="name must be a string, not NoneType"):
        workflow.signal("nobody", None)
    with pytest.raises(TypeError, match="name must be a string, not FunctionNode"):
        workflow.wait_for_signal(one.bind())


def test_values_of_signals() -> None:
    for value in (Unpicklable(), one.bind()):
        with pytest.raises(TypeError, match="value of signal 'approved'"):
            workflow.signal("nobody", "approved", value)


@pytest.mark.parametrize(
    ("timeout", "error", "message"),
    [
        ("1", TypeError, "number of seconds"),
        (True, TypeError, "number of seconds"),
        (0, ValueError, "positive"),
        (-1.0, ValueError, "positive"),
        (float("inf"), ValueError, "finite"),
        (float("nan"), ValueError, "finite"),
    ],
)
def test_how_long_a_signal_is_waited_for(
    timeout: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"timeout must be.*{message}"):
        workflow.wait_for_signal("s", timeout=timeout)


def test_whether_a_wait_catches() -> None:
    with pytest.raises(TypeError, match="'catch_exceptions' must be True or False"):
        workflow.wait_for_signal("s", catch_exceptions=1)


def test_a_second_init_with_another_storage(tmp_path: Path, storage_dir: Path) -> None:
    with pytest.raises(ValueError, match="One cluster has one storage"):
        workflow.init(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    workflow.init(storage_dir)
    workflow.init()


def test_limits() -> None:
    for name in ("max_running_workflows", "max_pending_workflows"):
        with pytest.raises(TypeError, match=name):
            workflow.init(**{name: "1"})
        with pytest.raises(ValueError, match=name):
            workflow.init(**{name: -2})
    with pytest.raises(ValueError, match="max_running_workflows"):
        workflow.init(max_running_workflows=0)
    with pytest.raises(ValueError, match="originally -1"):
        workflow.init(max_running_workflows=3)


def test_auto_resume() -> None:
    with pytest.raises(TypeError, match="auto_resume"):
        workflow.init(auto_resume=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="auto_resume=True, originally False"):
        workflow.init(auto_resume=True)
    workflow.init(auto_resume=False)


@pytest.mark.parametrize("given", ["", "15", "2.5"])
def test_a_lease(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, given)
    assert lease_seconds() == float(given or 15)


@pytest.mark.parametrize("given", ["0", "-1", "16", "nan", "inf", "15s"])
def test_a_lease_that_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, given)
    with pytest.raises(workflow.StorageConfigError, match=f"{LEASE_VARIABLE} is '{given}'"):
        lease_seconds()


def test_a_storage_that_cannot_be_used_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code = f"""
        import ray, ray_workflows as workflow
        from ray_workflows._client.connection import find_coordinator
        from tests.ray.start import few_processes, start_cluster
        def refused(storage):
            try:
                workflow.init(storage)
            except workflow.StorageConfigError as error:
                assert storage[:3] in str(error), error
                print("refused", error)
        refused("ftp://host/dir")
        # A Ray that was started for it ends with it.
        with few_processes():
            refused({str(tmp_path / "file")!r})
        assert not ray.is_initialized()
        start_cluster(num_cpus=1)
        refused({str(tmp_path / "file")!r})
        refused({str(tmp_path / "file" / "below")!r})
        refused("/proc/nothing")
        assert find_coordinator() is None
        workflow.init({str(tmp_path / "good")!r}, max_running_workflows=1, max_pending_workflows=0)
        import queue
        from tests.ray.marks import Gate, Marks
        from tests.ray.test_crashes import held
        gate, marks = Gate({str(tmp_path / "gate")!r}), Marks({str(tmp_path / "marks")!r})
        ref = workflow.run_async(held.bind(marks, gate, 1), workflow_id="running")
        try:
            workflow.run_async(held.bind(marks, gate, 1), workflow_id="too many")
        except queue.Full as error:
            print("full:", error)
        assert workflow.list_all() == [("running", "RUNNING")]
        gate.open()
        assert ray.get(ref) == 1
        print("all right", flush=True)
    """
    with DriverProcess(tmp_path, code) as driver:
        text = driver.wait()
    assert text.count("refused") == 5, text
    assert "full: Workflow queue has been full" in text
    assert "all right" in text

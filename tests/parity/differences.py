"""Where we differ from ray.workflow 2.47.1 on purpose, as data.

The reasons are those of docs/migration.md, word for word. A difference that is listed and no
longer there fails the test, and so does one that is not listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """``ours``: for each key of the outcome that differs, what ours is."""

    reason: str
    ours: dict[str, Any]


def raises(*names: str) -> dict[str, Any]:
    """An error that can be caught by each of these names."""
    return {"raises": list(names)}


def returns(value: Any) -> dict[str, Any]:
    return {"returns": value}


VALUE_ERROR = {"error": ["ValueError"]}

CAUSE = (
    "`WorkflowExecutionError.__cause__` is the task's error; it got lost on the way to the driver."
)
CAUGHT_IS_STORED = (
    "A caught exception is a result like any other: stored, given by `get_output`, and not "
    "computed again by a resume."
)
NESTED_NODES = (
    "Nodes nested in containers arrive as ObjectRefs after a resume too, not as plain values."
)
STILL_ACTIVE = (
    "`delete` of a running or pending workflow raises `WorkflowStillActiveError`, which did not "
    "unpickle and came out as `RaySystemError`."
)
RETRY_TYPES = "`retry_exceptions=[types]` works; `run` raised `DataSaveError`."
CHECKED_BY_TYPE = "Ids and options of a wrong type raise at the call."
FAILED_END = "Tasks that failed have an `end_time` too, and so have canceled workflows."
PICKLE = "All errors pickle, with their attributes and cause."
NOT_WRAPPED = (
    "An error that refuses a call (such as an unknown id) is raised as it is, and is no "
    "`ray.exceptions.RayTaskError`; an error that says how a workflow ended still is one."
)
UNSTORED_OUTPUT = (
    "The output of a workflow is stored even if its last task has `checkpoint=False`: "
    "`get_output` finds it, and a resume does not run the task again."
)

DIFFERENCES: dict[str, Difference] = {
    # -- errors ----------------------------------------------------------------------------
    "the_cause_of_a_failure": Difference(CAUSE, {"causes": [["ValueError", "Exception"]]}),
    "the_cause_after_a_crash": Difference(CAUSE, {"causes": [["WorkerCrashedError", "Exception"]]}),
    "errors_are_rays_task_errors": Difference(
        NOT_WRAPPED,
        dict.fromkeys(("get_output", "get_status", "delete", "resume"), False),
    ),
    "errors_pickle": Difference(
        PICKLE,
        {"pickle": returns("WorkflowExecutionError"), "of_a_verb": returns(True)},
    ),
    "an_error_that_does_not_pickle": Difference(
        "`catch_exceptions` also catches errors that do not unpickle.", {"caught": True}
    ),
    "delete_a_running_one": Difference(
        STILL_ACTIVE, {"answer": raises("WorkflowStillActiveError")}
    ),
    "deleting_a_running_one_says_so": Difference(
        STILL_ACTIVE,
        {"types": raises("WorkflowStillActiveError"), "names_it": True},
    ),
    "verbs_on_a_pending_one": Difference(
        STILL_ACTIVE, {"delete": raises("WorkflowStillActiveError")}
    ),
    # -- inputs and ids --------------------------------------------------------------------
    "a_bare_input": Difference(
        "A bare `InputNode` gives the task the one positional argument of `run`; it got an "
        "internal wrapper.",
        {"value": returns([[5], {}])},
    ),
    "an_input_that_is_missing": Difference(
        "An input that the DAG takes and `run` does not get is a `ValueError` that names it; it "
        "was an `IndexError` or `KeyError` from within Ray.",
        {"positional": raises("ValueError"), "named": raises("ValueError")},
    ),
    "a_chosen_id_that_looks_numbered": Difference(
        "Task ids are unique in any case: a chosen `a_1` beside two tasks `a` made one task "
        "take the result of another.",
        {"value": returns([["by hand", 0, 1], {}])},
    ),
    "other_ids_that_are_no_text": Difference(CHECKED_BY_TYPE, {"resume": raises("TypeError")}),
    "options_of_a_wrong_type": Difference(
        CHECKED_BY_TYPE,
        dict.fromkeys(("task_id", "catch_exceptions", "checkpoint"), True),
    ),
    "ids_of_event_tasks": Difference(
        "The tasks within `wait_for_event` and `sleep` have other ids: `event-` and the name of "
        "the listener, the same with `-acknowledged` behind it, and `sleep`; they were named after "
        "functions of the library.",
        dict.fromkeys(("get_message", "message_committed"), raises("ValueError")),
    ),
    # -- options ---------------------------------------------------------------------------
    "the_mapping_of_options": Difference(
        "`workflow.options(...)` unpacks to `_labels`, as current Ray rejects `_metadata`.",
        {"keys": ["_labels"]},
    ),
    "ray_options_in_metadata": Difference(
        "`ray_options` in a task's metadata has what is given to Ray; what the library takes "
        "(`max_retries`, `retry_exceptions`, its own options) is beside it.",
        {"keys": ["num_cpus"]},
    ),
    "numbers_of_returns": Difference(
        "An explicit `num_returns=1` is accepted.", {"one": returns(1)}
    ),
    "scheduling_strategy_objects": Difference(
        "Scheduling strategy objects are accepted, not only names.", {"value": returns(1)}
    ),
    "exceptions_are_retried_by_type": Difference(
        RETRY_TYPES, {"run": returns(2), "ran": {"runs": 2}}
    ),
    "exceptions_of_other_types_are_not_retried": Difference(
        RETRY_TYPES, {"run": raises("WorkflowExecutionError"), "ran": {"runs": 1}}
    ),
    "retries_without_end": Difference(
        "`max_retries=-1` retries without end, as in Ray; it meant not at all.",
        {"run": returns(3), "ran": {"runs": 3}},
    ),
    # -- metadata --------------------------------------------------------------------------
    "metadata_of_a_failed_workflow": Difference(
        FAILED_END,
        {"task": {"start_time": "<time>", "end_time": "<time>"}},
    ),
    "metadata_of_a_second_run": Difference(
        "`run` with an id that exists leaves the stored metadata alone; it overwrote it.",
        {"metadata": {"k": "first"}},
    ),
    "metadata_that_json_lacks": Difference(
        "NaN and infinity are refused in metadata: they are no JSON.", {"nan": True}
    ),
    "metadata_after_resume": Difference(
        "`start_time` of a workflow is when it first started; a resume does not change it.",
        {"started_anew": False},
    ),
    "metadata_of_an_interrupted_one": Difference(
        "`get_metadata` and `get_status` agree after a cluster was lost: RESUMABLE.",
        {"agree": True},
    ),
    "inherited_checkpoint_in_metadata": Difference(
        "Tasks in continuations of tasks with `checkpoint=False` have metadata as all others.",
        {"root": returns(False), "inner": returns(False)},
    ),
    "what_the_full_queue_leaves": Difference(
        "A workflow refused with `queue.Full` leaves nothing behind.",
        {"metadata": raises("ValueError")},
    ),
    "metadata_of_a_canceled_workflow": Difference(
        FAILED_END,
        {
            "workflow": {
                "status": "CANCELED",
                "user_metadata": {"k": "v"},
                "stats": {"start_time": "<time>", "end_time": "<time>"},
            }
        },
    ),
    "the_statuses": Difference(
        "`str()` of a status is its value on every Python, as f-strings had it before 3.12.",
        {"text": "FAILED"},
    ),
    # -- outputs ---------------------------------------------------------------------------
    "done_tasks_of_a_canceled_workflow": Difference(
        "What tasks stored before their workflow was canceled can be had with `get_output`.",
        {"done": returns(1)},
    ),
    "get_output_of_a_ref_as_the_result": Difference(
        "A task that returns an ObjectRef gives an ObjectRef to `get_output` too, as to `run`.",
        {"output": returns("<ObjectRef>")},
    ),
    "get_output_of_a_workflow_that_ended_unstored": Difference(
        UNSTORED_OUTPUT, {"output": returns("a"), "ran": {"a": 1}}
    ),
    "outputs_of_unstored_tasks_while_running": Difference(
        "`get_output` of a task with `checkpoint=False` always says that it is not stored; it "
        "gave the value while it happened to be in memory.",
        {"first": raises("ValueError")},
    ),
    # -- canceled --------------------------------------------------------------------------
    "cancel_a_pending_one": Difference(
        "A PENDING workflow can be canceled; that hung.",
        {
            "answer": returns(None),
            "status": returns("CANCELED"),
            "run": raises("WorkflowCancellationError"),
            "other": returns("held0"),
            "ran": {"held0": 1, "held0-ended": 1},
        },
    ),
    "cancel_an_unknown_one": Difference(
        "`cancel` of an unknown id raises `WorkflowNotFoundError`; it made a CANCELED workflow.",
        {
            "answer": raises("WorkflowNotFoundError", "ValueError"),
            "status": raises("WorkflowNotFoundError"),
            "listed": [],
        },
    ),
    "resume_a_canceled_one": Difference(
        "A canceled workflow is not resumed, as its documentation always said, unless asked for "
        "with `resume(id, canceled=True)`.",
        {
            "resume": raises("WorkflowNotResumableError"),
            "run": raises("WorkflowNotResumableError"),
            "status": returns("CANCELED"),
        },
    ),
    "no_pending_workflows": Difference(
        "`max_pending_workflows=0` means that none may wait; it meant without limit.",
        {"second": raises("Full")},
    ),
    # -- catching --------------------------------------------------------------------------
    "a_caught_error_runs_once": Difference(CAUGHT_IS_STORED, {"ran": {"caught": 1, "later": 2}}),
    "caught_errors_after_a_crash": Difference(
        CAUGHT_IS_STORED,
        {
            "resumed": returns([[{"tuple": [None, VALUE_ERROR]}, "held"], {}]),
            "ran": {"caught": 1, "held": 2, "held-ended": 1},
        },
    ),
    "get_output_of_a_caught_error": Difference(
        CAUGHT_IS_STORED, {"output": returns({"tuple": [None, VALUE_ERROR]})}
    ),
    "the_output_of_a_caught_error": Difference(
        CAUGHT_IS_STORED, {"output": returns({"tuple": [None, VALUE_ERROR]})}
    ),
    "caught_by_the_outer_one_only": Difference(
        "A task with `catch_exceptions` always gives a pair, also when the continuation it "
        "returns says `catch_exceptions=False`; its values came bare then, its errors paired.",
        {"good": returns({"tuple": [1, None]})},
    ),
    # -- values ----------------------------------------------------------------------------
    "a_dag_in_a_container_returned": Difference(
        "A task that returns DAG nodes in a container fails; the unexecuted nodes were stored.",
        {"value": raises("WorkflowExecutionError")},
    ),
    "nested_nodes_after_resume": Difference(
        NESTED_NODES,
        {"value": returns([[["<ObjectRef>", {"k": "<ObjectRef>"}], "failing"], {}])},
    ),
    "nested_nodes_after_a_crash": Difference(
        NESTED_NODES, {"resumed": returns([[["<ObjectRef>"], "held"], {}])}
    ),
    "refs_of_a_driver_that_ended": Difference(
        "ObjectRefs in arguments outlive the driver that made them.",
        {"output": returns([[["<ObjectRef>"], "<bytes>", "held"], {}])},
    ),
    # -- what runs how often ---------------------------------------------------------------
    "how_often_a_running_sibling_runs": Difference(
        "A sibling of a failed task that still runs when the workflow is resumed is not started "
        "a second time beside itself.",
        {"sibling": 1},
    ),
    "more_sleeps_than_cpus": Difference(
        "Waiting for events and timers occupies no CPU.", {"polled_at_once": True}
    ),
    "bad_durations": Difference(
        "`sleep` takes a finite number of seconds; other values raise at the call.",
        {"text": raises("TypeError")},
    ),
}

#: Differences that no user should accept: their tests fail as expected until they are mended, and
#: fail for good when they are and still stand here. What then still differs is listed above.
TO_MEND: dict[str, str] = {}

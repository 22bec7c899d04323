"""`catch_exceptions`: values, errors, continuations, and what is stored of them."""

from __future__ import annotations

import ray

from tests.parity.kit import caught, scenario, seen, workflow
from tests.parity.tasks import (
    continue_with,
    crash_until,
    fail,
    fail_unless,
    fail_until,
    identity,
    mark,
)


def catching(workflow, function, **options):
    return function.options(**workflow.options(catch_exceptions=True, **options))


def run(workflow, scratch, dag, suffix=""):
    return caught(workflow.run, dag, workflow_id=scratch.id(suffix))


@scenario
def caught_values_and_errors(workflow, scratch):
    return {
        "value": run(workflow, scratch, catching(workflow, identity).bind(1), "1"),
        "none": run(workflow, scratch, catching(workflow, identity).bind(None), "2"),
        "error": run(workflow, scratch, catching(workflow, fail).bind(), "3"),
        "status": caught(workflow.get_status, scratch.id("3")),
    }


@scenario
def a_caught_error_itself(workflow, scratch):
    value, error = workflow.run(catching(workflow, fail).bind(), workflow_id=scratch.id())
    return {
        "value": value,
        "is_value_error": isinstance(error, ValueError),
        "message": "on purpose" in str(error),
        "has_traceback": "in fail" in str(error),
        "args": seen(getattr(error, "cause", error).args),
    }


@scenario
def a_caught_error_is_an_argument(workflow, scratch):
    @ray.remote
    def look(pair):
        value, error = pair
        return [value, isinstance(error, ValueError)]

    good = look.bind(catching(workflow, identity).bind(1))
    bad = look.bind(catching(workflow, fail).bind())
    return {
        "good": run(workflow, scratch, good, "1"),
        "bad": run(workflow, scratch, bad, "2"),
    }


@scenario
def an_error_upstream_is_not_caught(workflow, scratch):
    return {"run": run(workflow, scratch, catching(workflow, identity).bind(fail.bind()))}


@scenario
def caught_after_retries(workflow, scratch):
    task = fail_until.options(
        max_retries=2, retry_exceptions=True, **workflow.options(catch_exceptions=True)
    )
    return {
        "late": run(workflow, scratch, task.bind(scratch.marks, "late", 3), "1"),
        "never": run(workflow, scratch, task.bind(scratch.marks, "never", 9), "2"),
        "ran": scratch.marks.counts(),
    }


@scenario
def a_crash_is_not_caught(workflow, scratch):
    task = crash_until.options(max_retries=0, **workflow.options(catch_exceptions=True))
    value = run(workflow, scratch, task.bind(scratch.marks, "crash", 9))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def caught_in_a_continuation(workflow, scratch):
    def good():
        return identity.bind(1)

    def bad():
        return fail.bind()

    def deep_bad():
        return identity.bind(fail.bind())

    task = catching(workflow, continue_with)
    return {
        "good": run(workflow, scratch, task.bind(good), "1"),
        "bad": run(workflow, scratch, task.bind(bad), "2"),
        "deep_bad": run(workflow, scratch, task.bind(deep_bad), "3"),
    }


@scenario
def caught_in_a_deeper_continuation(workflow, scratch):
    def bad():
        return continue_with.bind(worse)

    def worse():
        return fail.bind()

    def good():
        return continue_with.bind(better)

    def better():
        return identity.bind(1)

    task = catching(workflow, continue_with)
    return {
        "bad": run(workflow, scratch, task.bind(bad), "1"),
        "good": run(workflow, scratch, task.bind(good), "2"),
    }


@scenario
def caught_by_both(workflow, scratch):
    """A catching task returns a continuation that ends in a catching task."""

    def good():
        return catching(workflow, identity).bind(1)

    def bad():
        return catching(workflow, fail).bind()

    task = catching(workflow, continue_with)
    return {
        "good": run(workflow, scratch, task.bind(good), "1"),
        "bad": run(workflow, scratch, task.bind(bad), "2"),
    }


@scenario
def caught_by_the_inner_one_only(workflow, scratch):
    def good():
        return catching(workflow, identity).bind(1)

    def bad():
        return catching(workflow, fail).bind()

    return {
        "good": run(workflow, scratch, continue_with.bind(good), "1"),
        "bad": run(workflow, scratch, continue_with.bind(bad), "2"),
    }


@scenario
def caught_by_the_outer_one_only(workflow, scratch):
    """The continuation says explicitly that it does not catch."""

    def good():
        return identity.options(**workflow.options(catch_exceptions=False)).bind(1)

    def bad():
        return fail.options(**workflow.options(catch_exceptions=False)).bind()

    task = catching(workflow, continue_with)
    return {
        "good": run(workflow, scratch, task.bind(good), "1"),
        "bad": run(workflow, scratch, task.bind(bad), "2"),
    }


@scenario
def caught_within_a_continuation(workflow, scratch):
    """By a task that is not its last."""

    def more():
        return identity.bind(catching(workflow, fail).bind())

    return {"value": run(workflow, scratch, continue_with.bind(more))}


@scenario
def the_output_of_a_caught_error(workflow, scratch):
    """A caught error is a result like any other: stored, and not computed again."""
    gate = scratch.gate()
    failing = catching(workflow, fail, task_id="caught").bind()
    dag = fail_unless.bind(scratch.marks, "later", gate, failing)
    caught(workflow.run, dag, workflow_id=scratch.id())
    return {"output": caught(workflow.get_output, scratch.id(), task_id="caught")}


@scenario
def get_output_of_a_caught_error(workflow, scratch):
    workflow.run(catching(workflow, fail).bind(), workflow_id=scratch.id())
    return {
        "status": caught(workflow.get_status, scratch.id()),
        "output": caught(workflow.get_output, scratch.id()),
        "resume": caught(workflow.resume, scratch.id()),
    }


@scenario
def a_caught_error_runs_once(workflow, scratch):
    gate = scratch.gate()
    failing = catching(workflow, fail_until).bind(scratch.marks, "caught", 2)
    dag = fail_unless.bind(scratch.marks, "later", gate, failing)
    caught(workflow.run, dag, workflow_id=scratch.id())
    gate.open()
    return {
        "resumed": caught(workflow.resume, scratch.id()),
        "ran": scratch.marks.counts(),
    }


@scenario
def a_workflow_goes_on_after_a_caught_error(workflow, scratch):
    bad = catching(workflow, fail).bind()
    dag = mark.bind(scratch.marks, "after", bad, mark.bind(scratch.marks, "beside"))
    return {"value": run(workflow, scratch, dag), "ran": scratch.marks.counts()}


@ray.remote
def recover(pair):
    value, error = pair
    return workflow.continuation(identity.bind(["recovered", seen(error)]))


@scenario
def a_handler_in_a_continuation(workflow, scratch):
    dag = recover.bind(catching(workflow, fail).bind())
    return {"value": run(workflow, scratch, dag)}


@scenario
def an_error_that_does_not_pickle(workflow, scratch):
    class Odd(Exception):
        def __init__(self, first, second):
            super().__init__("odd")

    @ray.remote
    def odd():
        raise Odd(1, 2)

    value = run(workflow, scratch, odd.bind(), "1")
    return {
        "run": value,
        "caught": "returns" in run(workflow, scratch, catching(workflow, odd).bind(), "2"),
        "status": caught(workflow.get_status, scratch.id("1")),
    }

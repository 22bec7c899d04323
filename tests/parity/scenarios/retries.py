"""Retries: of crashed workers, and of exceptions where asked for."""

from __future__ import annotations

import ray

from tests.parity.kit import caught, cause_types, raised, scenario
from tests.parity.tasks import crash_until, fail_until


def run(workflow, scratch, dag, suffix=""):
    return caught(workflow.run, dag, workflow_id=scratch.id(suffix))


@scenario
def exceptions_are_not_retried(workflow, scratch):
    value = run(workflow, scratch, fail_until.bind(scratch.marks, "runs", 2))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def exceptions_are_retried_when_asked(workflow, scratch):
    task = fail_until.options(retry_exceptions=True, max_retries=2)
    return {
        "enough": run(workflow, scratch, task.bind(scratch.marks, "enough", 3), "1"),
        "too_few": run(workflow, scratch, task.bind(scratch.marks, "too_few", 4), "2"),
        "ran": scratch.marks.counts(),
    }


@scenario
def exceptions_are_retried_three_times(workflow, scratch):
    """The default of max_retries."""
    task = fail_until.options(retry_exceptions=True)
    value = run(workflow, scratch, task.bind(scratch.marks, "runs", 9))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def exceptions_are_retried_by_type(workflow, scratch):
    task = fail_until.options(retry_exceptions=[ValueError], max_retries=2)
    value = run(workflow, scratch, task.bind(scratch.marks, "runs", 2))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def exceptions_of_other_types_are_not_retried(workflow, scratch):
    task = fail_until.options(retry_exceptions=[KeyError], max_retries=2)
    value = run(workflow, scratch, task.bind(scratch.marks, "runs", 2))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def crashes_are_retried(workflow, scratch):
    value = run(workflow, scratch, crash_until.bind(scratch.marks, "runs", 3))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def crashes_are_retried_so_often(workflow, scratch):
    task = crash_until.options(max_retries=1)
    return {
        "enough": run(workflow, scratch, task.bind(scratch.marks, "enough", 2), "1"),
        "too_few": run(workflow, scratch, task.bind(scratch.marks, "too_few", 3), "2"),
        "status": caught(workflow.get_status, scratch.id("2")),
        "ran": scratch.marks.counts(),
    }


@scenario
def crashes_are_retried_three_times(workflow, scratch):
    value = run(workflow, scratch, crash_until.bind(scratch.marks, "runs", 9))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def retries_forbidden(workflow, scratch):
    task = crash_until.options(max_retries=0)
    value = run(workflow, scratch, task.bind(scratch.marks, "runs", 2))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def retries_without_end(workflow, scratch):
    """Ray's max_retries=-1."""
    task = crash_until.options(max_retries=-1)
    value = run(workflow, scratch, task.bind(scratch.marks, "runs", 3))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def retries_given_to_ray_remote(workflow, scratch):
    @ray.remote(max_retries=1, retry_exceptions=True)
    def runs(marks):
        marks.add("runs")
        raise ValueError(marks.count("runs"))

    value = run(workflow, scratch, runs.bind(scratch.marks))
    return {"run": value, "ran": scratch.marks.counts()}


@scenario
def the_cause_after_a_crash(workflow, scratch):
    dag = crash_until.options(max_retries=0).bind(scratch.marks, "runs", 2)
    error = raised(workflow.run, dag, workflow_id=scratch.id())
    return {"causes": cause_types(error)}

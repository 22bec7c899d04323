"""Options of a bound task: ours, found in Ray's ``_labels``, and Ray's, as data.

Ray rejects unknown option keys, but takes ``_labels``, a dict of strings; our options are one JSON
string there. Arguments for Ray's ``.options()`` are stored as JSON-compatible data, so that
the coordinator can submit a task without unpickling user data.
"""

from __future__ import annotations

import io
import json
import pickle
import reprlib
from collections.abc import Mapping
from typing import Any

from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

from ray_workflows._capture.depth import JSON_DEPTH, is_deeper_than
from ray_workflows._capture.pickling import pickle_value
from ray_workflows._model.plan import BODY, DEFAULT_MAX_RETRIES, FUNCTION, Backoff, TaskOptions
from ray_workflows._ray.private import LABELS, placement_group

#: The label under which the options of `ray_workflows.options` travel.
LABEL = "ray_workflows.options"

#: Options that the engine handles, or that make no sense for a workflow task.
NOT_FOR_RAY = ("max_retries", "retry_exceptions", "num_returns", LABELS)

#: Options that a durable function can have, besides those above. `num_cpus` is 1 if not given.
FOR_BODIES = ("name", "runtime_env", "num_cpus")

#: Ray's conditions on the labels of nodes, by their stored names.
OPERATORS = {"In": In, "NotIn": NotIn, "Exists": Exists, "DoesNotExist": DoesNotExist}

#: The module of Ray's scheduling strategies.
STRATEGIES = NodeLabelSchedulingStrategy.__module__


def read_label(ray_options: Mapping[str, Any]) -> dict[str, Any]:
    """The workflow options among Ray's options, as given to `ray_workflows.options`."""
    labels = ray_options.get(LABELS) or {}
    text = labels.get(LABEL)
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def write_label(options: Mapping[str, Any]) -> dict[str, str]:
    """The value for Ray's ``_labels`` that carries workflow options."""
    return {LABEL: json.dumps(options, sort_keys=True)}


def task_options(bound: Mapping[str, Any], *, where: str) -> tuple[TaskOptions, str | None]:
    """The options of a task and the requested task id, from a node's bound options.

    Raises:
        ValueError: an option that a workflow task can't have; names it and the task.
    """
    num_returns = bound.get("num_returns")
    if num_returns not in (None, 1):
        raise ValueError(
            f"The {where} has num_returns={num_returns!r}; a workflow task can only have one "
            f"return. Return a tuple, and take it apart in the tasks that use it."
        )
    ours = read_label(bound)
    if ours.get("kind") == BODY:
        check_for_body(bound, ours, where=where)
    options = TaskOptions(
        kind=ours.get("kind", FUNCTION),
        catch_exceptions=bool(ours.get("catch_exceptions")),
        checkpoint=ours.get("checkpoint"),
        metadata=ours.get("metadata") or {},
        ray=encode_ray_options(bound, where=where),
        duration=float(ours.get("duration", 0.0)),
        timeout=ours.get("timeout"),
        batch=ours.get("batch") is not False,
        signal=ours.get("signal", ""),
        tags=ours.get("tags") or {},
        **retry_options(bound, ours.get("retry"), where=where),
    )
    return options, ours.get("task_id")


def check_for_body(bound: Mapping[str, Any], ours: Mapping[str, Any], *, where: str) -> None:
    """Raise ValueError if a durable function has options for resources, or where it should run, or
    a timeout, which would limit each of its attempts and so mean little."""
    if ours.get("timeout") is not None:
        raise ValueError(
            f"The {where} is a durable function and can't have a timeout: it may wait for weeks. "
            f"Use asyncio.timeout in it, timeouts of its steps, or run(..., timeout=...)."
        )
    for key, value in bound.items():
        if key in NOT_FOR_RAY or (key in FOR_BODIES and (key != "num_cpus" or value == 1)):
            continue
        # What is 0, empty or the default asks for nothing.
        if value and value != "DEFAULT":
            raise ValueError(
                f"The {where} is a durable function and can't have the Ray option "
                f"{key}={reprlib.repr(value)}: it runs in a process that it shares with others, "
                f"and that takes no CPU. Give resources to its steps."
            )


def retry_options(
    bound: Mapping[str, Any], policy: Mapping[str, Any] | None, *, where: str
) -> dict[str, Any]:
    """The retry options of a task: from a policy, else from Ray's options."""
    max_retries = bound.get("max_retries")
    exceptions = bound.get("retry_exceptions")
    if policy is None:
        return {
            "max_retries": DEFAULT_MAX_RETRIES if max_retries is None else int(max_retries),
            "retry_exceptions": bool(exceptions),
            "retry_on": None
            if isinstance(exceptions, bool) or not exceptions
            else pickled_types(tuple(exceptions)),
        }
    if max_retries is not None or exceptions is not None:
        raise ValueError(
            f"The {where} has both a retry policy (retry=) and Ray's max_retries or "
            f"retry_exceptions. Keep one of them."
        )
    attempts = policy["max_attempts"]
    return {
        "max_retries": -1 if attempts is None else attempts - 1,
        "retry_exceptions": True,
        "retry_on": from_hex(policy["retry_on"]),
        "give_up_on": from_hex(policy["give_up_on"]),
        "retry_timeouts": policy["retry_timeouts"],
        # A policy in a function that 0.1.0 stored lacks this key.
        "preemptions": policy.get("preemptions"),
        "backoff": Backoff(policy["backoff"], policy["max_backoff"], policy["jitter"]),
    }


def to_hex(types: tuple[type[BaseException], ...]) -> str | None:
    """Exception types as text for a label."""
    return pickled_types(types).hex() if types else None


def pickled_types(types: tuple[type[BaseException], ...]) -> bytes:
    """Exception types in the form of a task's options."""
    return bytes(pickle_value(types, where="exception types to retry on").data)


def from_hex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def encode_ray_options(bound: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    encoded: dict[str, Any] = {}
    for key, value in bound.items():
        if key in NOT_FOR_RAY or value is None:
            continue
        if key == "scheduling_strategy":
            value = encode_strategy(value)  # noqa: PLW2901
        elif key == "runtime_env":
            value = dict(value)  # noqa: PLW2901
        elif isinstance(value, PlacementGroup):
            value = {"placement_group": value.id.hex()}  # noqa: PLW2901
        encoded[key] = encode_ray_option(key, value, where=where)
    labels = {k: v for k, v in (bound.get(LABELS) or {}).items() if k != LABEL}
    if labels:
        encoded[LABELS] = encode_ray_option(LABELS, labels, where=where)
    return encoded


def encode_ray_option(key: str, value: Any, *, where: str) -> Any:
    """The value with plain types: subclasses of str and numbers, such as numpy's, are converted."""
    try:
        if is_deeper_than(JSON_DEPTH, value):
            raise ValueError(f"it is more than {JSON_DEPTH} levels deep")
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        # A runtime_env may have secrets.
        shown = "" if key == "runtime_env" else f"={reprlib.repr(value)}"
        raise ValueError(
            f"The {where} has the Ray option {key}{shown}, which can't be stored: {error}."
        ) from None


def encode_strategy(strategy: Any) -> Any:
    if isinstance(strategy, str):
        return strategy
    if isinstance(strategy, NodeAffinitySchedulingStrategy):
        return {"node_affinity": {"node_id": strategy.node_id, "soft": strategy.soft}}
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        return {
            "placement_group": {
                "id": strategy.placement_group.id.hex(),
                "bundle_index": strategy.placement_group_bundle_index,
                "capture_child_tasks": strategy.placement_group_capture_child_tasks,
            }
        }
    if isinstance(strategy, NodeLabelSchedulingStrategy):
        conditions = {"hard": strategy.hard, "soft": strategy.soft}
        return {"node_labels": {name: encode_labels(each) for name, each in conditions.items()}}
    raise ValueError(f"scheduling_strategy {strategy!r} is not one this release knows.")


def encode_labels(expressions: Any) -> dict[str, list[Any]]:
    """Conditions on the labels of nodes: by label, the name of an operator and its values."""
    encoded: dict[str, list[Any]] = {}
    for each in expressions:
        (name,) = (name for name, kind in OPERATORS.items() if isinstance(each.operator, kind))
        encoded[each.key] = [name, *getattr(each.operator, "values", ())]
    return encoded


def decode_labels(encoded: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Decode the output of `encode_labels` for `NodeLabelSchedulingStrategy`."""
    return {key: OPERATORS[name](*values) for key, (name, *values) in encoded.items()}


class StrategyUnpickler(pickle.Unpickler):
    """Unpickles a label strategy stored by 0.1.0; allows Ray's classes alone."""

    def find_class(self, module: str, name: str) -> Any:
        """A class of a strategy or of its parts."""
        found = super().find_class(module, name) if module == STRATEGIES else None
        if isinstance(found, type) and found.__module__ == STRATEGIES:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is none of Ray's scheduling strategies")


def decode_strategy(data: Any) -> Any:
    """The scheduling strategy that `encode_strategy` encoded."""
    if isinstance(data, str):
        return data
    ((kind, fields),) = data.items()
    if kind == "node_affinity":
        return NodeAffinitySchedulingStrategy(**fields)
    if kind == "node_labels":
        return NodeLabelSchedulingStrategy(**{k: decode_labels(v) for k, v in fields.items()})
    if kind == "node_label":
        return StrategyUnpickler(io.BytesIO(bytes.fromhex(fields))).load()
    return PlacementGroupSchedulingStrategy(
        placement_group=placement_group(fields["id"]),
        placement_group_bundle_index=fields["bundle_index"],
        placement_group_capture_child_tasks=fields["capture_child_tasks"],
    )


def decode_ray_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for Ray's ``.options()``."""
    decoded = dict(options)
    if "scheduling_strategy" in decoded:
        decoded["scheduling_strategy"] = decode_strategy(decoded["scheduling_strategy"])
    group = decoded.get("placement_group")
    if isinstance(group, dict):
        decoded["placement_group"] = placement_group(group["placement_group"])
    return decoded

"""Live values: objects in the cluster's object store, by the keys of their blobs."""

from __future__ import annotations

from typing import Any

from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._model.values import Blob, Value


class LiveValues:
    """The objects of one workflow in the cluster's object store, by blob key, with reference
    counts.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.holds: dict[str, int] = {}

    def add(self, keys: list[str], objects: dict[str, Any]) -> None:
        self.objects.update(objects)
        for key in keys:
            self.holds[key] = self.holds.get(key, 0) + 1

    def release(self, value: Value) -> None:
        for key in value_keys(value):
            holds = self.holds.get(key, 0) - 1
            if holds > 0:
                self.holds[key] = holds
            else:
                self.holds.pop(key, None)
                self.objects.pop(key, None)

    def among(self, keys: list[str]) -> dict[str, Any]:
        """The live objects among the keys."""
        return {key: self.objects[key] for key in keys if key in self.objects}

    def drop(self, keys: list[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


def value_keys(value: Value | None) -> list[str]:
    """The blob keys of a value and of the objects in it."""
    if value is None:
        return []
    keys = [blob.key for blob in value.objects]
    if isinstance(value.data, Blob):
        keys.append(value.data.key)
    return keys


def direct_keys(request: AttemptRequest) -> list[str]:
    """Keys of live objects that the attempt takes by value."""
    nested = set(request.nested)
    return [
        outcome.value.data.key
        for position, outcome in enumerate(request.inputs)
        if position not in nested
        and outcome.value is not None
        and isinstance(outcome.value.data, Blob)
    ]


def nested_keys(request: AttemptRequest) -> list[str]:
    """Keys of live objects that the attempt gets as ObjectRefs."""
    keys = [blob.key for blob in request.arguments.objects]
    for outcome in request.inputs:
        keys += [blob.key for blob in outcome.value.objects] if outcome.value is not None else []
    for position in request.nested:
        value = request.inputs[position].value
        if value is not None and isinstance(value.data, Blob):
            keys.append(value.data.key)
    for value in request.constants:
        keys += [blob.key for blob in value.objects]
    return keys

"""Unpickles user values: fills in placeholders, and replaces classes.

Only this module and `pickling` unpickle values of users.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any

from ray_workflows._capture.classes import OWN, Classes, identity_in, own_class
from ray_workflows._codec.envelope import plain_head_in
from ray_workflows._codec.placeholders import placeholder
from ray_workflows._ray.private import (
    CLASS_ID,
    ENUM_ID,
    FILL_CLASS,
    MAKE_CLASS,
    MAKE_ENUM,
    SKELETON,
    know_class,
    tracked_class,
)

#: A name in every pickle with a placeholder.
PLACEHOLDER = placeholder.__name__.encode()

#: Finds the name that is in every pickle with a class by value.
find_skeleton = re.compile(re.escape(SKELETON)).search

#: Smaller pickles contain no class by value. Most results are smaller, and are not searched.
SMALLEST_CLASS = 128


class ValueUnpickler(pickle.Unpickler):
    """Unpickles one value; ``resolve`` gives the object for each placeholder, ``classes`` replaces
    classes that the pickle contains by value."""

    def __init__(
        self,
        file: io.BytesIO,
        buffers: Sequence[memoryview],
        resolve: Callable[[str, int], Any],
        classes: Classes,
    ) -> None:
        super().__init__(file, buffers=buffers)
        self.resolve = resolve
        self.classes = classes
        #: Classes that replaced one of the pickle.
        self.taken: set[type] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == placeholder.__module__ and name == placeholder.__name__:
            return self.resolve
        found = super().find_class(module, name)
        if found is MAKE_CLASS:
            return lambda *args: self.make_class(MAKE_CLASS, args, args[CLASS_ID])
        if found is MAKE_ENUM:
            return lambda *args: self.make_class(MAKE_ENUM, args, args[ENUM_ID])
        return self.fill_class if found is FILL_CLASS else found

    def make_class(self, make: Callable[..., type], args: tuple[Any, ...], tracker_id: Any) -> type:
        identity = identity_in(tracker_id)
        if identity is None:
            return make(*args)
        cls = self.classes.find(identity) or tracked_class(identity.before)
        found = cls is not None
        if cls is None:
            # cloudpickle returns the class itself if this process has pickled it before.
            cls = make(*args)
            know_class(cls, identity.before)
        if found or cls is own_class(*identity.name):
            self.taken.add(cls)
        self.classes.made(identity, cls)
        return cls

    def fill_class(self, cls: type, state: Any) -> type:
        # A replacing class keeps its own contents.
        return cls if cls in self.taken else FILL_CLASS(cls, state)


def unpickle_value(
    data: bytes | memoryview,
    buffers: Sequence[memoryview],
    resolve: Callable[[str, int], Any] = placeholder,
    classes: Classes = OWN,
) -> Any:
    """The value behind a pickle; errors of user code (imports, ``__setstate__``) come through."""
    if resolve is placeholder and not brings_classes(data):
        return pickle.loads(data, buffers=buffers)
    data = bytes(data)
    if PLACEHOLDER not in data and not brings_classes(data):
        # Nothing to replace.
        return pickle.loads(data, buffers=buffers)
    return ValueUnpickler(io.BytesIO(data), buffers, resolve, classes).load()


def brings_classes(pickled: bytes | memoryview) -> bool:
    """Whether a pickle may contain classes by value."""
    if type(pickled) is bytes:
        return SKELETON in pickled
    # Without a copy, which may be large.
    return find_skeleton(pickled) is not None


def unpickle_plain(sealed: bytes) -> Any:
    """The value of an envelope with a plain pickle and nothing else; None for any other.

    Takes half the time of the general way, and most values are small and plain.
    """
    head = plain_head_in(len(sealed))
    if head is None or not sealed.startswith(head) or PLACEHOLDER in sealed:
        return None
    if len(sealed) > SMALLEST_CLASS and brings_classes(sealed):
        return None
    return pickle.loads(sealed[len(head) :])

"""Unpickling of user values: what stands behind placeholders, and which classes values have.

With `pickling` the only module that unpickles values of users.
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

#: The name that is in every pickle with a placeholder in it.
PLACEHOLDER = placeholder.__name__.encode()

#: Finds what is in every pickle that brings a class along.
find_skeleton = re.compile(re.escape(SKELETON)).search

#: No pickle of so few bytes brings a class along: most results have fewer, and are not searched.
SMALLEST_CLASS = 128


class ValueUnpickler(pickle.Unpickler):
    """Unpickles one value; ``resolve`` says what stands behind each placeholder, ``classes`` what
    takes the place of the classes that the pickle brings along."""

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
        #: What took the place of a class.
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
            # One that this process has pickled before is found again.
            cls = make(*args)
            know_class(cls, identity.before)
        if found or cls is own_class(*identity.name):
            self.taken.add(cls)
        self.classes.made(identity, cls)
        return cls

    def fill_class(self, cls: type, state: Any) -> type:
        # One that took the place of a class has its own contents.
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
        # Nothing to put into it.
        return pickle.loads(data, buffers=buffers)
    return ValueUnpickler(io.BytesIO(data), buffers, resolve, classes).load()


def brings_classes(pickled: bytes | memoryview) -> bool:
    """Whether a pickle may bring classes along."""
    if type(pickled) is bytes:
        return SKELETON in pickled
    # Without a copy of what may be large.
    return find_skeleton(pickled) is not None


def unpickle_plain(sealed: bytes) -> Any:
    """The value in an envelope that holds a pickle and nothing else, of which nothing was left out;
    None if it is another one.

    It takes half the time of the long way, and most values are small and plain.
    """
    head = plain_head_in(len(sealed))
    if head is None or not sealed.startswith(head) or PLACEHOLDER in sealed:
        return None
    if len(sealed) > SMALLEST_CLASS and brings_classes(sealed):
        return None
    return pickle.loads(sealed[len(head) :])

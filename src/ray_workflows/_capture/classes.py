"""Matches classes of a script or notebook, which pickles contain by value, with those of this
process.

cloudpickle pickles such a class with its contents, under an id by which one process recognizes it
again. Here the id also has the name of the class and a digest of its definition. So a process that
has a class of this name and definition, such as a restarted script, uses its own class, unchanged.
"""

from __future__ import annotations

import logging
import sys
import uuid
import weakref
from typing import Any, NamedTuple, Protocol

from ray import cloudpickle

from ray_workflows._capture.definitions import SCRIPT, comes_along, definition, named
from ray_workflows._ray.private import class_id, track_class

logger = logging.getLogger(__name__)

#: The prefix of ids that name their class and its definition.
PREFIX = "ray_workflows"

#: Definitions of this process's own classes; and the classes that have such an id.
definitions: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
named_classes: weakref.WeakSet[type] = weakref.WeakSet()


class Identity(NamedTuple):
    """The contents of an id. ``before``: the earlier id of the class in its process, which is in
    pickles that plain Ray made there."""

    before: str
    module: str
    qualname: str
    definition: str

    @property
    def name(self) -> tuple[str, str]:
        """The module and qualified name of the class."""
        return self.module, self.qualname


def identity_in(tracker_id: Any) -> Identity | None:
    """Parse an id; None for one of cloudpickle's own."""
    parts = tracker_id.split(":", 4) if isinstance(tracker_id, str) else []
    if len(parts) != 5 or parts[0] != PREFIX:
        return None
    _, before, meaning, module, qualname = parts
    return Identity(before, module, qualname, meaning)


def own_class(module: str, qualname: str) -> type | None:
    """The class with a name in this process."""
    found = named(module, qualname)
    return found if isinstance(found, type) else None


def own_definition(cls: type) -> str:
    """The definition of a class of this process, from when it was first computed."""
    found = definitions.get(cls)
    if found is None:
        found = definitions[cls] = definition(cls)
    return found


def bring_along(value: Any) -> None:
    """Make pickles contain a class or function of the script by value, with a descriptive id."""
    module = value.__module__
    if comes_along(module):
        if module != SCRIPT:
            cloudpickle.register_pickle_by_value(sys.modules[module])
        if isinstance(value, type):
            name_class(value)


def name_class(cls: type) -> None:
    """Give a class of this process a descriptive id. A class that a function made has no name, and
    one that came in a pickle has its id already."""
    module, qualname = cls.__module__, cls.__qualname__
    if cls in named_classes or named(module, qualname) is not cls:
        return
    named_classes.add(cls)
    meaning = own_definition(cls)
    if meaning:
        # Unique: the globals of the class's functions differ between processes, and a worker that
        # serves two scripts must not confuse their classes.
        before = class_id(cls) or uuid.uuid4().hex
        track_class(cls, ":".join((PREFIX, before, meaning, module, qualname)))


class Classes(Protocol):
    """What a reader of pickles implements to replace the classes in them."""

    def find(self, identity: Identity) -> type | None:
        """The class to use; None for that of the pickle."""

    def made(self, identity: Identity, cls: type) -> None:
        """Called when the class of the pickle is used."""


class OwnClasses:
    """Replaces classes by this process's own with the same name and definition."""

    def __init__(self) -> None:
        #: Classes with a different definition here, after a warning.
        self.warned: set[Identity] = set()

    def find(self, identity: Identity) -> type | None:
        """This process's own class if its definition is the same; warns once if it differs."""
        own = own_class(*identity.name)
        if own is None or own_definition(own) == identity.definition:
            return own
        if identity not in self.warned and len(self.warned) < MAX_WARNED:
            self.warned.add(identity)
            logger.warning(
                "The class %s.%s of a stored value is not the one that this process has under its "
                "name: they are defined differently. The value has the stored class, so isinstance "
                "and except do not match it.",
                *identity.name,
            )
        return None

    def made(self, identity: Identity, cls: type) -> None:
        """Nothing to note."""


#: The most classes that are warned about.
MAX_WARNED = 1000

OWN = OwnClasses()


class BroughtClasses:
    """Replaces classes by those in the pickle of a function with the same name and definition;
    ``by_name``: with the same name, as for classes of imported modules."""

    def __init__(self, by_name: bool) -> None:
        self.by_name = by_name
        self.classes: dict[tuple[str, str], tuple[str, type]] = {}

    def find(self, identity: Identity) -> type | None:
        """The class that replaces it."""
        meaning, cls = self.classes.get(identity.name, ("", None))
        return cls if self.by_name or meaning == identity.definition else None

    def made(self, identity: Identity, cls: type) -> None:
        """Nothing to note."""


class Bringing:
    """Uses the classes in the pickle of a function, and collects them."""

    def __init__(self, by_name: bool = False) -> None:
        self.brought = BroughtClasses(by_name)

    def find(self, identity: Identity) -> type | None:
        """None: use that of the pickle."""
        return None

    def made(self, identity: Identity, cls: type) -> None:
        """Collect the class."""
        self.brought.classes[identity.name] = identity.definition, cls

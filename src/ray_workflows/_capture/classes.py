"""Which class a pickle means that brings one along: a class of a script or notebook.

cloudpickle stores such a class with its contents, under an id by which a process knows it again for
as long as it lives. Here the id also says the name of the class and what it is defined as. So a
process that has a class of this name and definition, as a script does that was started again, takes
its own, and leaves that as it is.
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

#: What an id begins with that says what its class is.
PREFIX = "ray_workflows"

#: Definitions of this process's own classes, and those whose ids say what they are.
definitions: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
named_classes: weakref.WeakSet[type] = weakref.WeakSet()


class Identity(NamedTuple):
    """What an id says of its class. ``before``: the id that its process had for it before, by which
    what plain Ray has pickled there knows it."""

    before: str
    module: str
    qualname: str
    definition: str

    @property
    def name(self) -> tuple[str, str]:
        """The name by which modules have it."""
        return self.module, self.qualname


def identity_in(tracker_id: Any) -> Identity | None:
    """What an id says; None if it is one of cloudpickle's own."""
    parts = tracker_id.split(":", 4) if isinstance(tracker_id, str) else []
    if len(parts) != 5 or parts[0] != PREFIX:
        return None
    _, before, meaning, module, qualname = parts
    return Identity(before, module, qualname, meaning)


def own_class(module: str, qualname: str) -> type | None:
    """The class that this process has under a name."""
    found = named(module, qualname)
    return found if isinstance(found, type) else None


def own_definition(cls: type) -> str:
    """The definition of a class of this process, as it was when it was first asked for."""
    found = definitions.get(cls)
    if found is None:
        found = definitions[cls] = definition(cls)
    return found


def bring_along(value: Any) -> None:
    """Let pickles bring a class or function along if it is the script's, and say what it is."""
    module = value.__module__
    if comes_along(module):
        if module != SCRIPT:
            cloudpickle.register_pickle_by_value(sys.modules[module])
        if isinstance(value, type):
            name_class(value)


def name_class(cls: type) -> None:
    """Let pickles of a class say what it is, if it is this process's own: one made by a function
    has no name, and one that came in a pickle has its id."""
    module, qualname = cls.__module__, cls.__qualname__
    if cls in named_classes or named(module, qualname) is not cls:
        return
    named_classes.add(cls)
    meaning = own_definition(cls)
    if meaning:
        # Unique: what the functions of the class find in their modules is another in each process,
        # and a worker that serves two scripts must not take the one's for the other's.
        before = class_id(cls) or uuid.uuid4().hex
        track_class(cls, ":".join((PREFIX, before, meaning, module, qualname)))


class Classes(Protocol):
    """What a reader of pickles implements to replace the classes in them."""

    def find(self, identity: Identity) -> type | None:
        """The class to take; None for that of the pickle."""

    def made(self, identity: Identity, cls: type) -> None:
        """A class of the pickle was taken."""


class OwnClasses:
    """The classes of this process's modules: those that are the same by name and definition."""

    def __init__(self) -> None:
        #: Those of which was warned.
        self.warned: set[Identity] = set()

    def find(self, identity: Identity) -> type | None:
        """This process's own class, if it is the same; warns, once, if it is another."""
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


#: How many different classes are warned of.
MAX_WARNED = 1000

OWN = OwnClasses()


class BroughtClasses:
    """The classes that a function has brought along. They stand for those that are the same by name
    and definition; ``by_name``: for all of their names, as classes of imported modules do."""

    def __init__(self, by_name: bool) -> None:
        self.by_name = by_name
        self.classes: dict[tuple[str, str], tuple[str, type]] = {}

    def find(self, identity: Identity) -> type | None:
        """The class that stands for it."""
        meaning, cls = self.classes.get(identity.name, ("", None))
        return cls if self.by_name or meaning == identity.definition else None

    def made(self, identity: Identity, cls: type) -> None:
        """Nothing to note."""


class Bringing:
    """Takes the classes in the pickle of a function as they are, and notes them."""

    def __init__(self, by_name: bool = False) -> None:
        self.brought = BroughtClasses(by_name)

    def find(self, identity: Identity) -> type | None:
        """None: that of the pickle."""
        return None

    def made(self, identity: Identity, cls: type) -> None:
        """Note it."""
        self.brought.classes[identity.name] = identity.definition, cls

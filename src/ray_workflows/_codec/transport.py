"""A message through Ray: the only argument of a call that is made often, or its answer.

Ray takes bytes as they are. Everything else costs time where it is sent and where it comes, even a
number or an empty dict (about 30 microseconds each), and most of all what it has to pickle.
"""

from __future__ import annotations

from typing import Any

#: Bytes, or a list of them and of objects that only Ray can bring.
Message = bytes | list[Any]


def message(data: bytes, objects: Any = None) -> Message:
    """A message of bytes.

    Args:
        data: all that can be encoded.
        objects: an ObjectRef, or a dict with ObjectRefs; None or empty if there are none.
    """
    return [data, objects] if objects else data


def opened(message: Message) -> tuple[bytes, Any]:
    """The bytes and the objects of a message; None if it has none."""
    if isinstance(message, bytes):
        return message, None
    data, objects = message
    return data, objects

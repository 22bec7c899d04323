"""Messages of frequent calls through Ray: their only argument, and their answer.

Ray passes bytes unchanged. Every other argument costs time in sender and receiver, even a number or
an empty dict (about 30 microseconds each), and values that Ray has to pickle cost most.
"""

from __future__ import annotations

from typing import Any

#: Bytes, or a list of bytes and of objects that only Ray can carry.
Message = bytes | list[Any]


def message(data: bytes, objects: Any = None) -> Message:
    """A message of bytes.

    Args:
        data: the encoded part.
        objects: an ObjectRef, or a dict with ObjectRefs; None or empty if there are none.
    """
    return [data, objects] if objects else data


def opened(message: Message) -> tuple[bytes, Any]:
    """The bytes and the objects of a message; None for the objects if there are none."""
    if isinstance(message, bytes):
        return message, None
    data, objects = message
    return data, objects

"""Numbered items in their order: Ray may change the order of calls, and repeat them."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Puts numbered items that come in any order, or twice, into their order.

    Args:
        first: the number of the first item.
    """

    __slots__ = ("early", "next")

    def __init__(self, first: int = 0) -> None:
        self.next = first
        #: Items that came before others that precede them.
        self.early: dict[int, T] = {}

    def add(self, number: int, item: T) -> list[T]:
        """Add an item. Returns those whose turn has come."""
        if number >= self.next:
            self.early[number] = item
        ready = []
        while self.next in self.early:
            ready.append(self.early.pop(self.next))
            self.next += 1
        return ready

"""What the simulation raises when a promise is broken."""

from __future__ import annotations


class Violation(AssertionError):
    """A promise is broken. ``kind`` says which one, in one word or two."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"[{kind}] {message}")
        self.kind = kind

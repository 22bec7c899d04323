"""The log of a run: what tasks did, what drivers were answered, what was done to processes.

One file on which any process appends a line with one write. What a process wrote before it was
killed with -9 is there afterwards.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

# -- the kinds of lines --------------------------------------------------------------------

#: An execution of a task began, with the results that it was given; it ended, or raised.
BEGIN, END, RAISED = "begin", "end", "raised"

#: What a task was given, or a driver read, is not what was made.
DAMAGED = "damaged"

#: A driver calls a verb; it returned (durable before the driver goes on); it raised.
TRY, ACK, ERROR = "try", "ack", "error"

#: A driver saw the end of a workflow: its output, its error, its status.
READ, FAILED, STATUS = "read", "failed", "status"

#: A driver has done all that it was to do with a workflow.
DONE = "done"

#: The run did something to a process, or began a part of itself.
FAULT, PHASE = "fault", "phase"


class Line(msgspec.Struct, omit_defaults=True):
    """A line of the log. ``at``: seconds since 1970, by the clock that all processes share."""

    kind: str
    at: float
    pid: int
    workflow: str = ""
    task: str = ""
    epoch: int = 0
    attempt: int = 0
    key: str = ""
    #: Names one execution; it is a part of the result.
    nonce: str = ""
    value: int = 0
    #: The results that an execution was given: (task, nonce) of each.
    saw: tuple[tuple[str, str], ...] = ()
    verb: str = ""
    text: str = ""

    def __str__(self) -> str:
        fields = msgspec.to_builtins(self)
        rest = (f"{name}={value}" for name, value in fields.items() if name not in ("kind", "at"))
        return f"{self.at:.3f} {self.kind} {' '.join(rest)}"


ENCODER = msgspec.json.Encoder()
DECODER = msgspec.json.Decoder(Line)


class Log:
    """A log by its path; usable in any process."""

    def __init__(self, path: str) -> None:
        self.path = path

    def add(self, kind: str, *, durable: bool = False, **fields) -> None:
        line = Line(kind, time.time(), os.getpid(), **fields)
        descriptor = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        try:
            # A new line before it too: a write that a SIGKILL cut short spoils no other line.
            os.write(descriptor, b"\n" + ENCODER.encode(line) + b"\n")
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> list[Line]:
        """All lines in the order in which they were written, without any that was cut short."""
        try:
            data = Path(self.path).read_bytes()
        except FileNotFoundError:
            return []
        lines = []
        for text in data.split(b"\n"):
            if text:
                try:
                    lines.append(DECODER.decode(text))
                except msgspec.DecodeError:
                    continue
        return lines

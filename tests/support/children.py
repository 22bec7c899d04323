"""Functions of a test module in processes of their own, killed at the end."""

from __future__ import annotations

import contextlib
import multiprocessing

# Children come from a server that has imported what they need: a real process in milliseconds,
# without forking this one and its threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "ray_workflows.storage", "ray_workflows.testing.builders"]
)

HANG_SECONDS = 60


@contextlib.contextmanager
def child(function, *arguments):
    """A process that runs ``function(pipe, *arguments)``; killed at the end."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join(HANG_SECONDS)
        assert process.exitcode is not None
        process.close()
        ours.close()


def receive(pipe):
    assert pipe.poll(HANG_SECONDS), "the child hangs"
    return pipe.recv()

"""Which process serves which attempt of a hosted kind (listeners, bodies), and when it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from ray_workflows._executor.protocol import AttemptRequest

#: The most idle hosts that are kept for the next attempt of their environment.
MAX_IDLE = 4

#: Attempts whose hosts keep dying are spread over at most two to this power of hosts.
MAX_SPLITS = 6


class Host:
    """An actor and the number of its attempts."""

    __slots__ = ("actor", "died_with", "name", "serves")

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self.actor = actor
        self.serves = 0
        #: How many attempts it served when it died.
        self.died_with = 0


class Hosts:
    """The hosts of a coordinator. Called with the executor's lock held.

    Args:
        end: ends the actor of a host.
    """

    def __init__(self, end: Callable[[Any], None]) -> None:
        self.end = end
        #: By name; the most recently used host is last.
        self.hosts: dict[str, Host] = {}
        #: The host of each call.
        self.calls: dict[Any, Host] = {}

    def take(self, environment: str, request: AttemptRequest, make: Callable[[], Any]) -> Host:
        """The host for an attempt, which `make` starts unless there is one."""
        name = f"{environment} {share(request)}"
        host = self.hosts.pop(name, None) or Host(name, make())
        self.hosts[name] = host
        return host

    def called(self, host: Host, call: Any) -> None:
        """A host serves an attempt, until the call ends."""
        host.serves += 1
        self.calls[call] = host

    def ended(self, call: Any, died: bool) -> bool:
        """Note that a call has ended, or its host has died. Ignores refs of Ray tasks. Returns
        whether the host died and served others too: then it is not known which is to blame."""
        host = self.calls.pop(call, None)
        if host is None:
            return False
        if died and not host.died_with:
            host.died_with = host.serves
        host.serves -= 1
        if self.hosts.get(host.name) is host:
            if died:
                del self.hosts[host.name]
            else:
                self.end_idle()
        return host.died_with > 1

    def end_idle(self) -> None:
        """End all idle hosts but the last few."""
        idle = [each for each in self.hosts.values() if not each.serves]
        for each in idle[: max(0, len(idle) - MAX_IDLE)]:
            del self.hosts[each.name]
            self.end(each.actor)

    def close(self) -> None:
        """End all hosts."""
        for host in self.hosts.values():
            self.end(host.actor)
        self.hosts.clear()


def share(request: AttemptRequest) -> str:
    """Which of the hosts of an environment an attempt gets.

    All share one host at first. If it dies, the guilty task is unknown: each next attempt draws
    one of twice as many hosts, so that the guilty one soon shares its host with few others, and
    never with a new task. Each attempt draws anew, so that no task stays with the guilty one.
    """
    failures = request.attempt - 1 if request.history is None else request.setbacks
    splits = min(failures, MAX_SPLITS)
    # Not a CRC: those of two tasks would differ in the same bits at each attempt.
    text = f"{request.incarnation} {request.task} {request.attempt}"
    drawn = hashlib.blake2b(text.encode(), digest_size=1).digest()[0]
    return f"{splits}-{drawn % (1 << splits)}"

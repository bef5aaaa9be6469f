"""What every store of circuits does, and the words that they share.

The state machine is written three times, once in the language of each store: `breaker.lua`,
`sql/functions/circuit_breaker.sql`, `memory.py`. `tests/test_breaker_stores.py` holds all three to the same scenarios.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

from guard.errors import GuardError

State = Literal["closed", "open", "half_open"]
Override = Literal["forced_open", "forced_closed", "disabled"]
Outcome = Literal["success", "failure", "ignored"]

#: The longest key of a circuit, in characters.
LONGEST_KEY = 200


class StoreUnavailableError(GuardError):
    """The store did not answer in time."""

    default_fix = "Check that it runs; meanwhile the next store is used."


@dataclass(frozen=True, slots=True)
class Policy:
    """When a circuit opens and closes; `cooldown` and `lease` in seconds."""

    failure_threshold: int = 3
    success_threshold: int = 2
    cooldown: float = 30.0
    lease: float = 15.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A circuit as one store tells it to another.

    Times are seconds from the moment `taken` (of this process's monotonic clock), so that stores need not agree on
    what time it is: `open_for` and `probe_for` lie ahead, the others behind.
    """

    key: str
    state: State = "closed"
    generation: int = 0
    failure_count: int = 0
    success_count: int = 0
    open_for: float | None = None
    probe_token: str | None = None
    probe_for: float | None = None
    opened_ago: float | None = None
    closed_ago: float | None = None
    failed_ago: float | None = None
    override: Override | None = None
    override_reason: str | None = None
    override_revision: int = 0
    taken: float = field(default_factory=time.monotonic, compare=False)

    @classmethod
    def read(cls, key: str, values: Mapping[str, Any]) -> Snapshot:
        """From what a store answers; numbers may come as any number type."""
        return cls(key, **{name: kind(values[name]) for name, kind in _KINDS.items() if values.get(name) is not None})

    def told(self) -> dict[str, Any]:
        """The fields as they are to be told now."""
        passed = time.monotonic() - self.taken
        told = {name: getattr(self, name) for name in _KINDS}
        for name in ("open_for", "probe_for"):
            if told[name] is not None:
                told[name] -= passed
        for name in ("opened_ago", "closed_ago", "failed_ago"):
            if told[name] is not None:
                told[name] += passed
        return told

    @property
    def order(self) -> tuple[int, int]:
        """Of two snapshots of a circuit the greater is the newer: an override counts for more than any result."""
        return (self.override_revision, self.generation)

    @property
    def shown_state(self) -> str:
        return self.override or self.state


_KINDS: dict[str, Any] = {
    f.name: {"int": int, "float | None": float}.get(str(f.type), str)
    for f in fields(Snapshot)
    if f.name not in ("key", "taken")
}


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a circuit: transition, stale_result or override."""

    event: str
    circuit_key: str
    from_state: str
    to_state: str
    generation: int
    store: str
    error_class: str | None = None
    event_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    moment: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a store answers. `retry_after` in seconds, None where the store does not know; `token` of an admission."""

    snapshot: Snapshot
    allowed: bool = True
    retry_after: float | None = None
    token: str | None = None
    event: Event | None = None

    @property
    def is_probe(self) -> bool:
        return self.allowed and self.token is not None and self.token != ticket(self.snapshot.generation)


class Store(Protocol):
    """A store of circuits. Every method raises StoreUnavailableError where the store cannot be reached in time."""

    #: redis, postgresql or memory
    name: str
    #: Whether other processes see it.
    shared: bool

    def acquire(self, key: str, lease: float) -> Reply:
        """May a call pass? A probe gets a lease of so many seconds."""
        ...

    def record(self, key: str, token: str, outcome: Outcome, policy: Policy, error: str | None = None) -> Reply:
        """Record what became of a call that was allowed; `error` is the class of what it failed with."""
        ...

    def override(self, key: str, state: str, reason: str) -> Reply:
        """Force it open or closed, disable it, or lift that (none)."""
        ...

    def snapshots(self, keys: Iterable[str]) -> dict[str, Snapshot]:
        """Circuits as they are; those that the store does not know may be left out."""
        ...

    def merge(self, snapshot: Snapshot, released: str | None = None) -> Snapshot:
        """Take over what another store knows, if it is newer; `released` is a probe that has ended there."""
        ...

    def close(self) -> None:
        """Give up connections."""
        ...


def ticket(generation: int) -> str:
    """The token of calls that pass a closed circuit: its generation, written as a uuid. The same in every store."""
    return str(uuid.UUID(int=generation))


def check_key(key: str) -> None:
    """Raise GuardError for what cannot be the key of a circuit."""
    if not isinstance(key, str) or not key.strip() or len(key) > LONGEST_KEY or not key.isprintable():
        raise GuardError(
            f"This cannot be the key of a circuit: {str(key)[:60]!r}.",
            fix=f"Use 1 to {LONGEST_KEY} printable characters, as in appointment_booking:service:7.",
        )

"""Circuits in the memory of this process: the last resort, and for programs that run alone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock

from guard.stores.base import Event, Outcome, Override, Policy, Reply, Snapshot, State, ticket


@dataclass(slots=True)
class _Circuit:
    """Moments are of the store's clock, in seconds."""

    key: str
    state: State = "closed"
    generation: int = 0
    failure_count: int = 0
    success_count: int = 0
    open_until: float | None = None
    probe_token: str | None = None
    probe_until: float | None = None
    opened_at: float | None = None
    closed_at: float | None = None
    failed_at: float | None = None
    override: Override | None = None
    override_reason: str | None = None
    override_revision: int = 0

    def step(self, outcome: Outcome, policy: Policy, now: float) -> None:
        """The state machine: what the circuit is after an outcome that counts."""
        before = self.state
        self.probe_token = self.probe_until = None
        if outcome == "failure":
            self.failure_count += 1
            self.failed_at = now
            if before == "half_open" or self.failure_count >= policy.failure_threshold:
                self.state = "open"
                self.open_until = now + policy.cooldown
                self.success_count = 0
                if before == "closed":
                    self.opened_at, self.closed_at = now, None
        elif outcome == "success" and before == "closed":
            self.failure_count = 0
        elif outcome == "success":
            self.success_count += 1
            if self.success_count >= policy.success_threshold:
                self.state = "closed"
                self.failure_count = 0
                self.closed_at = now
        self.generation += self.state != before

    def snapshot(self, now: float) -> Snapshot:
        return Snapshot(
            key=self.key,
            state=self.state,
            generation=self.generation,
            failure_count=self.failure_count,
            success_count=self.success_count,
            open_for=_minus(self.open_until, now),
            probe_token=self.probe_token,
            probe_for=_minus(self.probe_until, now),
            opened_ago=_minus(now, self.opened_at),
            closed_ago=_minus(now, self.closed_at),
            failed_ago=_minus(now, self.failed_at),
            override=self.override,
            override_reason=self.override_reason,
            override_revision=self.override_revision,
        )


def _minus(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else later - earlier


class MemoryStore:
    """Circuits of this process alone. `clock` gives seconds, from any moment on."""

    name = "memory"
    shared = False

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._circuits: dict[str, _Circuit] = {}

    def acquire(self, key: str, lease: float) -> Reply:
        with self._lock:
            now = self._clock()
            circuit = self._circuits.get(key) or _Circuit(key)
            if circuit.override == "forced_open":
                return self._reply(circuit, now, allowed=False)
            if circuit.override or circuit.state == "closed":
                return self._reply(circuit, now, token=ticket(circuit.generation))
            if circuit.state == "open" and circuit.open_until is not None and circuit.open_until > now:
                return self._reply(circuit, now, allowed=False, retry_after=circuit.open_until - now)
            if circuit.probe_until is not None and circuit.probe_until > now:
                return self._reply(circuit, now, allowed=False, retry_after=min(1.0, circuit.probe_until - now))
            before = circuit.state
            if before == "open":
                circuit.state = "half_open"
                circuit.generation += 1
                circuit.success_count = 0
                circuit.open_until = None
            circuit.probe_token = str(uuid.uuid4())
            circuit.probe_until = now + lease
            return self._reply(
                circuit, now, token=circuit.probe_token, event="transition" if before == "open" else None, before=before
            )

    def record(self, key: str, token: str, outcome: Outcome, policy: Policy, error: str | None = None) -> Reply:
        with self._lock:
            now = self._clock()
            circuit = self._circuits.get(key) or _Circuit(key)
            current = ticket(circuit.generation)
            if token == current and (
                circuit.override or outcome == "ignored" or (outcome == "success" and circuit.failure_count == 0)
            ):
                return self._reply(circuit, now)
            shown = circuit.override or circuit.state
            if token != (circuit.probe_token or current) or (token == current and circuit.state != "closed"):
                return self._reply(circuit, now, event="stale_result", before=shown, error=error)
            before = circuit.state
            circuit.step(outcome, policy, now)
            self._circuits[key] = circuit
            event = "transition" if circuit.state != before else None
            return self._reply(circuit, now, event=event, before=before, error=error)

    def override(self, key: str, state: str, reason: str) -> Reply:
        with self._lock:
            now = self._clock()
            circuit = self._circuits.setdefault(key, _Circuit(key))
            before = circuit.override or circuit.state
            if state == "forced_open":
                if circuit.state == "closed":
                    circuit.opened_at = now
                circuit.closed_at = None
            elif circuit.state != "closed":
                circuit.closed_at = now
            circuit.state = "open" if state == "forced_open" else "closed"
            circuit.override = None if state == "none" else state  # type: ignore[assignment]  # checked by the caller
            circuit.override_reason = None if state == "none" else reason
            circuit.override_revision += 1
            circuit.generation += 1
            circuit.failure_count = circuit.success_count = 0
            circuit.open_until = circuit.probe_token = circuit.probe_until = None
            return self._reply(circuit, now, event="override", before=before)

    def snapshots(self, keys: Iterable[str]) -> dict[str, Snapshot]:
        with self._lock:
            now = self._clock()
            return {key: self._circuits[key].snapshot(now) for key in keys if key in self._circuits}

    def merge(self, snapshot: Snapshot, released: str | None = None) -> Snapshot:
        with self._lock:
            now = self._clock()
            own = self._circuits.setdefault(snapshot.key, _Circuit(snapshot.key))
            told = snapshot.told()
            if snapshot.order > (own.override_revision, own.generation):
                self._circuits[snapshot.key] = own = _Circuit(
                    key=snapshot.key,
                    state=snapshot.state,
                    generation=max(snapshot.generation, own.generation + 1),
                    failure_count=snapshot.failure_count,
                    success_count=snapshot.success_count,
                    open_until=_plus(now, told["open_for"]),
                    probe_token=snapshot.probe_token,
                    probe_until=_plus(now, told["probe_for"]) if snapshot.probe_token else None,
                    opened_at=_minus(now, told["opened_ago"]),
                    closed_at=_minus(now, told["closed_ago"]),
                    failed_at=_minus(now, told["failed_ago"]),
                    override=snapshot.override,
                    override_reason=snapshot.override_reason,
                    override_revision=snapshot.override_revision,
                )
            elif own.state == "half_open" and snapshot.order == (own.override_revision, own.generation):
                ended = own.probe_until is not None and own.probe_until <= now
                if ended or (released is not None and own.probe_token == released):
                    own.probe_token = own.probe_until = None
                own.success_count = max(own.success_count, snapshot.success_count)
                if own.probe_token is None and snapshot.probe_token is not None:
                    own.probe_token = snapshot.probe_token
                    own.probe_until = _plus(now, told["probe_for"])
            return own.snapshot(now)

    def close(self) -> None:
        """There is nothing to give up."""

    def _reply(
        self,
        circuit: _Circuit,
        now: float,
        *,
        allowed: bool = True,
        retry_after: float | None = None,
        token: str | None = None,
        event: str | None = None,
        before: str = "",
        error: str | None = None,
    ) -> Reply:
        return Reply(
            snapshot=circuit.snapshot(now),
            allowed=allowed,
            retry_after=retry_after,
            token=token,
            event=event
            and Event(  # type: ignore[arg-type]  # None where there is none
                event,
                circuit.key,
                before,
                circuit.override or circuit.state,
                circuit.generation,
                self.name,
                error,
            ),
        )


def _plus(moment: float, seconds: float | None) -> float | None:
    return None if seconds is None else moment + seconds

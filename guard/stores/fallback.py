"""Several stores as one: the first that answers decides, and all of them are kept in line.

A thread of each process, the keeper, reads every circuit that is in use from every store a few times a second.
Whichever store knows the newest state tells the others. So a store that was away catches up before it is used again,
an override made in one reaches all, and what Redis decides is kept in PostgreSQL. What the keeper reads is also the
local view that answers calls without a trip.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from guard.errors import GuardError
from guard.stores.base import Event, Outcome, Policy, Reply, Snapshot, Store, StoreUnavailableError, ticket
from guard.stores.memory import MemoryStore

if TYPE_CHECKING:
    from guard.stores.postgres import PostgresStore

T = TypeVar("T")

#: How often the keeper reads the stores, in seconds.
INTERVAL = 0.4
#: How old the local view may be before a call asks the store itself, in seconds.
MAX_AGE = 1.0
#: How long a circuit that nobody uses is kept in view, in rounds of the keeper.
IDLE_ROUNDS = 150
#: How often counters are reported, in rounds of the keeper.
REPORT_ROUNDS = 10
#: How many events wait for PostgreSQL at most; the oldest are given up first.
MOST_EVENTS = 10_000

_OUTCOMES = ("successes", "failures", "timeouts", "ignored", "rejected")
_log = logging.getLogger(__name__)


class View:
    """What this process knows of a circuit, made for the question whether a call may pass."""

    __slots__ = ("fresh_until", "open_until", "passes", "reply", "silent", "snapshot", "token", "used")

    def __init__(self, snapshot: Snapshot, fresh_until: float) -> None:
        self.snapshot = snapshot
        self.fresh_until = fresh_until
        overridden = snapshot.override in ("forced_closed", "disabled")
        self.passes = overridden or (snapshot.state == "closed" and snapshot.override is None)
        #: a success has nothing to record
        self.silent = overridden or snapshot.failure_count == 0
        self.open_until = 0.0
        if snapshot.override == "forced_open":
            self.open_until = float("inf")
        elif snapshot.state == "open" and snapshot.open_for is not None:
            self.open_until = snapshot.taken + snapshot.open_for
        self.token = ticket(snapshot.generation)
        self.reply = Reply(snapshot, token=self.token)
        self.used = True


class Counters:
    """What became of the calls of one circuit in this process since the last report."""

    __slots__ = ("_lock", "counts")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = dict.fromkeys(_OUTCOMES, 0)

    def add(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def take(self) -> dict[str, int]:
        with self._lock:
            taken, self.counts = self.counts, dict.fromkeys(_OUTCOMES, 0)
        return {name: count for name, count in taken.items() if count}

    def put_back(self, counts: dict[str, int]) -> None:
        with self._lock:
            for name, count in counts.items():
                self.counts[name] += count


class _Tier:
    """A store, and whether it answers. The keeper alone asks one that does not: callers never wait for it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.down = False
        self.retry_at = 0.0

    def fails(self, error: Exception) -> None:
        if not self.down:
            _log.warning("the %s store is not used for now: %s", self.store.name, error)
        self.down = True
        self.retry_at = time.monotonic() + INTERVAL

    def answers(self) -> None:
        _log.warning("the %s store is used again", self.store.name)
        self.down = False


class FallbackStore:
    """The given stores, the first that answers deciding; the memory of this process comes last by itself.

    `FallbackStore(RedisStore(url), PostgresStore(dsn))` is what a fleet uses. Threads may share it; a forked process
    starts with a view of its own.
    """

    def __init__(self, *stores: Store) -> None:
        kept = list(stores)
        if not any(isinstance(store, MemoryStore) for store in kept):
            kept.append(MemoryStore())
        self._tiers = [_Tier(store) for store in kept]
        self._durable: _Tier | None = next((t for t in self._tiers if t.store.name == "postgresql"), None)
        self._shared = any(tier.store.shared for tier in self._tiers)
        self.views: dict[str, View] = {}
        self._idle_rounds: dict[str, int] = {}
        self._counters: dict[str, Counters] = {}
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._start_lock = threading.Lock()
        self._reset()
        _every.add(self)

    @classmethod
    def of(cls, store: Store | FallbackStore) -> FallbackStore:
        """The store itself if it is one, else the one that all breakers of this store share."""
        if isinstance(store, FallbackStore):
            return store
        with _wrapping:
            if store not in _wrapped:
                _wrapped[store] = cls(store)
            return _wrapped[store]

    def _reset(self) -> None:
        self._keeper: threading.Thread | None = None
        self._listeners: list[threading.Thread] = []
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._start_lock = threading.Lock()
        self.views.clear()
        self._events.clear()
        self._counters.clear()

    def counters(self, key: str) -> Counters:
        return self._counters.setdefault(key, Counters())

    # what a breaker asks

    def acquire(self, key: str, lease: float) -> Reply:
        """May a call pass? Asks the first store that answers."""
        view = self.views.get(key)
        if view is None:
            self._watch(key)
        elif view.passes and self._unchanged(view):
            return view.reply
        tier, reply = self._ask(lambda store: store.acquire(key, lease))
        view = self.views.get(key)
        if view is not None and reply.snapshot.order < view.snapshot.order and self._shared:
            # it was restarted and has lost what is known here
            self.reconcile([key])
            tier, reply = self._ask(lambda store: store.acquire(key, lease))
        if reply.is_probe:
            reply = self._confirm(tier, reply)
        self._learn(reply)
        return reply

    def _unchanged(self, view: View) -> bool:
        """Whether the first store that answers says that a closed circuit is as it was; cheaper than to acquire it."""
        tier = next((tier for tier in self._tiers if not tier.down), self._tiers[-1])
        if not hasattr(tier.store, "unchanged"):
            return False
        asked = time.monotonic()
        try:
            unchanged: bool = tier.store.unchanged(view.snapshot)
        except StoreUnavailableError as error:
            self._lose(tier, error)
            return False
        if unchanged:
            view.used = True
            view.fresh_until = asked + MAX_AGE
        return unchanged

    def record(self, key: str, token: str, outcome: Outcome, policy: Policy, error: str | None = None) -> None:
        """Record what became of a call. Never fails: what cannot be recorded anywhere else, is in memory."""
        if key not in self.views:
            self._watch(key)
        try:
            tier, reply = self._ask(lambda store: store.record(key, token, outcome, policy, error))
            self._learn(reply)
            if int(token[:8], 16):  # a probe's: see ticket
                self._tell_probe_ended(tier, reply, token)
        except GuardError as refusal:
            _log.warning("a result of %s was dropped: %s", key, refusal.message)

    def override(self, key: str, state: str, reason: str) -> Snapshot:
        """Override a circuit in every store, first in the one that keeps an audit log."""
        self.reconcile([key])
        order = sorted(self._tiers, key=lambda tier: tier is not self._durable)
        _, reply = self._ask(lambda store: store.override(key, state, reason), order)
        self._learn(reply)
        self._tell(reply.snapshot)
        self._flush(counts=False)
        return reply.snapshot

    # how the stores are asked

    def _ask(self, question: Callable[[Store], T], tiers: Iterable[_Tier] | None = None) -> tuple[_Tier, T]:
        for tier in tiers or self._tiers:
            if tier.down:
                continue
            try:
                return tier, question(tier.store)
            except StoreUnavailableError as error:
                self._lose(tier, error)
        memory = self._tiers[-1]
        return memory, question(memory.store)

    def _lose(self, tier: _Tier, error: StoreUnavailableError) -> None:
        """Leave a store that did not answer to the keeper, who alone asks it until it does."""
        if not tier.down:
            self._wake.set()
        tier.fails(error)
        self._start_keeper()

    def _confirm(self, tier: _Tier, reply: Reply) -> Reply:
        """Tell the other shared stores of a probe before it starts; one that knows of another probe prevents it."""
        for other in self._tiers:
            if other is tier or other.down or not other.store.shared:
                continue
            try:
                merged = other.store.merge(reply.snapshot)
                if merged.probe_token == reply.token:
                    continue
                tier.store.merge(merged, released=reply.token)
            except StoreUnavailableError as error:
                self._lose(other, error)
                continue
            return Reply(snapshot=merged, allowed=False, retry_after=min(1.0, merged.probe_for or 1.0))
        return reply

    def _tell_probe_ended(self, tier: _Tier, reply: Reply, token: str) -> None:
        for other in self._tiers:
            if other is not tier and not other.down:
                try:
                    other.store.merge(reply.snapshot, released=token)
                except StoreUnavailableError as error:
                    self._lose(other, error)

    def _tell(self, snapshot: Snapshot) -> None:
        for tier in self._tiers:
            if not tier.down:
                try:
                    tier.store.merge(snapshot)
                except StoreUnavailableError as error:
                    self._lose(tier, error)

    def _learn(self, reply: Reply) -> None:
        snapshot = reply.snapshot
        self._see(snapshot)
        if reply.event is not None:
            self._events.append(reply.event)
            self._wake.set()

    def _see(self, snapshot: Snapshot) -> None:
        """Take a snapshot into the view, unless a newer one is there."""
        seen = self.views.get(snapshot.key)
        if seen is not None and snapshot.order < seen.snapshot.order:
            return
        if seen is None or snapshot.order > seen.snapshot.order:
            self._tiers[-1].store.merge(snapshot)
        view = View(snapshot, snapshot.taken + MAX_AGE if self._shared else float("inf"))
        view.used = seen is None or seen.used
        self.views[snapshot.key] = view

    # the keeper

    def reconcile(self, keys: Iterable[str]) -> None:
        """Read the circuits from every store that answers, and have the newest state of each be that of all."""
        self._reconcile(list(keys), [tier for tier in self._tiers if not tier.down])

    def _reconcile(self, keys: list[str], tiers: list[_Tier]) -> list[_Tier]:
        """Reconcile these stores; returns those that answered throughout."""
        read: dict[_Tier, dict[str, Snapshot]] = {}
        for tier in tiers:
            try:
                read[tier] = tier.store.snapshots(keys)
            except StoreUnavailableError as error:
                self._lose(tier, error)
        answered = set(read)
        for key in keys:
            known = [(tier, snapshots.get(key) or Snapshot(key)) for tier, snapshots in read.items()]
            _, newest = max(known, key=lambda entry: entry[1].order)  # of equal ones the first store's
            for tier, snapshot in known:
                if snapshot.order < newest.order:
                    try:
                        tier.store.merge(newest)
                    except StoreUnavailableError as error:
                        self._lose(tier, error)
                        answered.discard(tier)
            self._see(newest)
        return [tier for tier in tiers if tier in answered]

    def _watch(self, key: str) -> None:
        """Have the keeper watch a circuit."""
        self.reconcile([key])
        if self._shared:
            self._start_keeper()
            self._start_listeners()

    def _start_keeper(self) -> None:
        with self._start_lock:
            if self._keeper is None and not self._stop.is_set():
                self._keeper = threading.Thread(target=self._keep, name="guard-breaker", daemon=True)
                self._keeper.start()

    def _start_listeners(self) -> None:
        with self._start_lock:
            if self._listeners or self._stop.is_set():
                return
            for tier in self._tiers:
                if hasattr(tier.store, "listen"):
                    arguments = (self._heard, self._wake.set, self._stop)
                    listener = threading.Thread(
                        target=tier.store.listen, args=arguments, name="guard-listener", daemon=True
                    )
                    listener.start()
                    self._listeners.append(listener)

    def _heard(self, snapshot: Snapshot) -> None:
        if snapshot.key in self.views and not self._tiers[0].down:
            self._see(snapshot)

    def _keep(self) -> None:
        rounds = 0
        while not self._stop.is_set():
            self._wake.wait(INTERVAL)
            self._wake.clear()
            rounds += 1
            try:
                self._keep_in_line()
                if self._events or rounds % REPORT_ROUNDS == 0:
                    self._flush(counts=rounds % REPORT_ROUNDS == 0)
            except Exception:  # the thread must go on: without it every call would ask the store
                _log.exception("the keeper of circuits failed")

    def _keep_in_line(self) -> None:
        """Reconcile what is in use. A store that was away is used again once it has caught up."""
        keys = self._in_use()
        if not keys:  # nothing to ask a store for, and so no answer that it is there
            return
        now = time.monotonic()
        tiers = [tier for tier in self._tiers if not tier.down or now >= tier.retry_at]
        away = [tier for tier in tiers if tier.down]
        answered = self._reconcile(keys, tiers)
        for tier in away:
            if tier in answered:
                tier.answers()

    def _in_use(self) -> list[str]:
        for key, view in list(self.views.items()):
            idle = 0 if view.used else self._idle_rounds.get(key, 0) + 1
            view.used = False
            self._idle_rounds[key] = idle
            if idle > IDLE_ROUNDS:
                self.views.pop(key, None)
                self._idle_rounds.pop(key, None)
        return list(self.views)

    def _flush(self, *, counts: bool) -> None:
        """Have PostgreSQL keep the events, and the counters if asked to. What it does not take is tried again."""
        if self._durable is None or self._durable.down:
            return
        store: PostgresStore = self._durable.store  # type: ignore[assignment]  # by its name
        events = [self._events.popleft() for _ in range(len(self._events))]
        taken = {key: c.take() for key, c in list(self._counters.items())} if counts else {}
        told = [{"circuit_key": key, **c} for key, c in taken.items() if c]
        if not events and not told:
            return
        try:
            store.report([_told(event) for event in events], told)
        except StoreUnavailableError as error:
            self._lose(self._durable, error)
            self._events.extendleft(reversed(events))
            for key, c in taken.items():
                self.counters(key).put_back(c)

    def close(self) -> None:
        """Report what is left, end the threads, close the connections."""
        self._stop.set()
        self._wake.set()
        for thread in (self._keeper, *self._listeners):
            if thread is not None:
                thread.join(timeout=2)
        self._flush(counts=True)
        for tier in self._tiers:
            tier.store.close()
        with _wrapping:
            for store, wrapper in list(_wrapped.items()):
                if wrapper is self:
                    del _wrapped[store]

    def _after_fork(self) -> None:
        self._reset()
        for tier in self._tiers:
            if hasattr(tier.store, "forget"):
                tier.store.forget()


def _told(event: Event) -> dict[str, Any]:
    told = {name: getattr(event, name) for name in event.__slots__ if name != "moment"}
    return told | {"ago": time.monotonic() - event.moment}


_every: weakref.WeakSet[FallbackStore] = weakref.WeakSet()
_wrapped: weakref.WeakKeyDictionary[Store, FallbackStore] = weakref.WeakKeyDictionary()
_wrapping = threading.Lock()


def _after_fork() -> None:
    global _wrapping
    _wrapping = threading.Lock()
    for store in list(_every):
        store._after_fork()


def _at_exit() -> None:
    for store in list(_every):
        store.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)

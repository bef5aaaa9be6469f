"""What a circuit breaker costs a call, as a multiple of one Redis PING, beside pybreaker and purgatory.

The guarded operation does nothing, so that what is measured is the breaker. A round takes the subjects one after the
other, PING among them; the fastest round of each counts, since whatever else the machine does only adds.

The others call the operation in the caller's thread, however long it takes. `inline` is guard doing the same
(`timeout=None`); `timeout` is guard as it comes: another thread runs the operation, and the caller is free in time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import purgatory
import pybreaker
import redis
from purgatory.domain.model import OpenedState
from rich.console import Console
from rich.table import Table

from guard import CircuitBreaker, CircuitOpenError, FallbackStore, RedisStore
from tests.redis_servers import RedisServer

ROUNDS, CALLS = 15, 300
THREADS, SECONDS = 8, 0.05

#: The most that a subject may take of a PING.
MOST = {"guard cached, closed, inline": 0.2, "guard cached, open": 0.08, "guard strict, closed, inline": 1.4}


@dataclass
class Result:
    """Seconds per call of each subject, round by round, and for how long 8 threads of 50 ms took."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    threads: dict[str, float] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        return min(self.seconds[name]) / min(self.seconds["PING"])

    def as_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "threads": self.threads}

    def show(self, out: Console) -> None:
        table = Table(title="A guarded call", title_justify="left", header_style="bold", box=None, pad_edge=False)
        table.add_column("")
        for column in ("us", "PING", "at most", ""):
            table.add_column(column, justify="right")
        for name, seconds in self.seconds.items():
            most = MOST.get(name)
            verdict = "" if most is None else "[green]met" if self.ratio(name) <= most else "[red]missed"
            table.add_row(
                name, f"{min(seconds) * 1e6:.1f}", f"{self.ratio(name):.3f}", "" if most is None else str(most), verdict
            )
        out.print(table)
        for name, taken in self.threads.items():
            out.print(f"{name}: {THREADS} threads of {SECONDS * 1000:.0f} ms took {taken * 1000:.0f} ms")


def operation() -> int:
    return 1


def fail() -> None:
    raise ConnectionError


def measure(
    _server: Any = None, _sizes: Sequence[int] = (), progress: Callable[[str], None] = lambda _: None
) -> Result:
    """Measure every subject on a Redis of its own; the arguments are those of the other benchmarks."""
    server = RedisServer().start()
    store = FallbackStore(RedisStore(server.url, timeout=1))
    try:
        subjects = _subjects(server, store)
        result = Result(seconds={name: [] for name in subjects})
        for call in subjects.values():
            _time(call)
        for number in range(ROUNDS):
            progress(f"breaker, round {number + 1} of {ROUNDS}")
            for name, call in subjects.items():
                result.seconds[name].append(_time(call))
        progress("breaker, threads")
        guarded = CircuitBreaker("threads", store=store)
        result.threads["guard"] = _together(lambda: guarded.call(time.sleep, SECONDS))
        serial = pybreaker.CircuitBreaker()
        result.threads["pybreaker"] = _together(lambda: serial.call(time.sleep, SECONDS))
        return result
    finally:
        store.close()
        server.remove()


def run() -> None:
    """Measure, and print what was found."""
    measure().show(Console(highlight=False))


def _time(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begun) / CALLS


def _together(call: Callable[[], Any]) -> float:
    call()
    threads = [threading.Thread(target=call) for _ in range(THREADS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


def _subjects(server: RedisServer, store: FallbackStore) -> dict[str, Callable[[], Any]]:
    client = redis.Redis(port=server.port)
    subjects: dict[str, Callable[[], Any]] = {"PING": client.ping}

    modes: tuple[Literal["cached", "strict"], ...] = ("cached", "strict")
    for mode in modes:
        inline = CircuitBreaker(f"{mode}-closed", store=store, mode=mode, timeout=None)
        timed = CircuitBreaker(f"{mode}-closed", store=store, mode=mode)
        opened = CircuitBreaker(f"{mode}-open", store=store, mode=mode, cooldown=3600, timeout=None)
        _trip(opened.call, ConnectionError)
        subjects[f"guard {mode}, closed, inline"] = partial(inline.call, operation)
        subjects[f"guard {mode}, closed, timeout"] = partial(timed.call, operation)
        subjects[f"guard {mode}, open"] = _refused(partial(opened.call, operation), CircuitOpenError)

    for where, storage in (
        ("Redis", lambda name: pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, client, namespace=name)),
        ("memory", lambda _: pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)),
    ):
        healthy = pybreaker.CircuitBreaker(state_storage=storage("closed"))
        broken = pybreaker.CircuitBreaker(fail_max=3, reset_timeout=3600, state_storage=storage("open"))
        _trip(broken.call, ConnectionError, pybreaker.CircuitBreakerError)
        subjects[f"pybreaker {where}, closed"] = partial(healthy.call, operation)
        subjects[f"pybreaker {where}, open"] = _refused(partial(broken.call, operation), pybreaker.CircuitBreakerError)

    unit_of_work = purgatory.SyncRedisUnitOfWork(server.url)
    # its own client is one for asyncio, with which its synchronous breaker cannot work
    unit_of_work.contexts.redis = client  # type: ignore[attr-defined]
    factory = purgatory.SyncCircuitBreakerFactory(default_threshold=3, default_ttl=3600, uow=unit_of_work)

    def enter(name: str, function: Callable[[], Any]) -> Any:
        with factory.get_breaker(name):
            return function()

    _trip(partial(enter, "open"), ConnectionError, OpenedState)
    subjects["purgatory Redis, closed"] = partial(enter, "closed", operation)
    subjects["purgatory Redis, open"] = _refused(partial(enter, "open", operation), OpenedState)
    return subjects


def _trip(call: Callable[[Callable[[], Any]], Any], *expected: type[BaseException]) -> None:
    for _ in range(3):
        with contextlib.suppress(*expected):
            call(fail)


def _refused(call: Callable[[], Any], refusal: type[BaseException]) -> Callable[[], None]:
    def refused() -> None:
        try:
            call()
        except refusal:
            return
        raise AssertionError("the circuit is not open")

    return refused


if __name__ == "__main__":
    run()

"""What a breaker does around one call, whatever the store: outcomes, timeouts, threads, tasks, bad input."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest

import guard
from guard import (
    CircuitBreaker,
    CircuitOpenError,
    FallbackStore,
    GuardError,
    MemoryStore,
    OperationTimeoutError,
    deadline,
    remaining_time,
)


class Clock:
    """A clock that is moved by hand, in seconds."""

    def __init__(self) -> None:
        self.moment = 0.0

    def __call__(self) -> float:
        return self.moment


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("k", store=MemoryStore(clock), mode="strict", cooldown=30)


def fail(error: BaseException | None = None) -> None:
    raise error or ConnectionError("down")


def trip(breaker: CircuitBreaker, times: int = 3) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            breaker.call(fail)


def test_importing_guard_is_cheap() -> None:
    loaded = "import sys, guard; print({'redis', 'psycopg', 'tenacity', 'asyncio', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "set()\n"
    for name in guard.__all__:
        assert getattr(guard, name) is not None
    assert callable(guard.retry)


def test_a_call_returns_and_raises_what_the_function_does(breaker: CircuitBreaker) -> None:
    assert breaker.call(lambda a, b: a + b, 1, b=2) == 3
    error = KeyError("x")
    with pytest.raises(KeyError) as raised:
        breaker.call(fail, error)
    assert raised.value is error


@pytest.mark.parametrize("mode", ["strict", "cached"])
def test_it_opens_fails_at_once_and_recovers(clock: Clock, mode: str) -> None:
    breaker = CircuitBreaker("k", store=MemoryStore(clock), mode=mode, cooldown=30)  # type: ignore[arg-type]
    trip(breaker)
    calls: list[int] = []
    with pytest.raises(CircuitOpenError) as refused:
        breaker.call(calls.append, 1)
    assert refused.value.retry_after == pytest.approx(30, abs=1)
    assert (refused.value.key, refused.value.state, calls) == ("k", "open", [])
    clock.moment += 30
    if mode == "cached":  # the view goes by real time, which has not passed
        breaker._views.clear()
    breaker.call(calls.append, 1)
    assert breaker.snapshot().state == "half_open"
    breaker.call(calls.append, 2)
    assert breaker.snapshot().state == "closed"
    assert calls == [1, 2]


def test_failures_must_be_in_a_row(breaker: CircuitBreaker) -> None:
    trip(breaker, 2)
    breaker.call(int)
    trip(breaker, 2)
    assert breaker.snapshot().state == "closed"


def test_what_counts_can_be_chosen(clock: Clock) -> None:
    store = MemoryStore(clock)
    breaker = CircuitBreaker(
        "k", store=store, failure_threshold=1, failures=(OSError, ValueError), ignored=(FileNotFoundError,)
    )
    for error in (KeyError(), FileNotFoundError(), KeyboardInterrupt(), SystemExit(), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            breaker.call(fail, error)
    assert breaker.snapshot().state == "closed"
    with pytest.raises(ValueError, match="x"):
        breaker.call(fail, ValueError("x"))
    assert breaker.snapshot().state == "open"


def test_an_inner_circuit_that_is_open_does_not_open_the_outer_one(breaker: CircuitBreaker) -> None:
    inner = CircuitBreaker("inner", store=MemoryStore())
    trip(inner)
    for _ in range(5):
        with pytest.raises(CircuitOpenError):
            breaker.call(inner.call, int)
    assert breaker.snapshot().state == "closed"


def test_a_probe_that_the_caller_cancels_is_released(breaker: CircuitBreaker, clock: Clock) -> None:
    trip(breaker)
    clock.moment += 30
    with pytest.raises(KeyboardInterrupt):
        breaker.call(fail, KeyboardInterrupt())
    snapshot = breaker.snapshot()
    assert (snapshot.state, snapshot.success_count, snapshot.probe_token) == ("half_open", 0, None)


def test_timeout_frees_the_caller_and_discards_the_late_result() -> None:
    breaker = CircuitBreaker("k", store=MemoryStore(), timeout=0.2, failure_threshold=1)
    ended = threading.Event()

    def hang() -> str:
        time.sleep(2)
        ended.set()
        return "late"

    begun = time.monotonic()
    with pytest.raises(OperationTimeoutError):
        breaker.call(hang)
    assert time.monotonic() - begun < 1.5
    assert breaker.snapshot().state == "open"
    assert ended.wait(10)
    assert breaker.snapshot().state == "open"
    healthy = CircuitBreaker("other", store=MemoryStore())
    assert [healthy.call(int, "7") for _ in range(50)] == [7] * 50  # no later call gets the late result


def test_an_operation_can_ask_how_long_it_may_take(breaker: CircuitBreaker) -> None:
    assert remaining_time() is None
    left = breaker.call(remaining_time)
    assert left is not None
    assert 5 < left <= 10
    hasty = CircuitBreaker("hasty", store=MemoryStore(), timeout=2)
    inner = hasty.call(breaker.call, remaining_time)
    assert inner is not None
    assert inner <= 2
    with hasty:
        assert (remaining_time() or 99) <= 2
    assert remaining_time() is None


def test_what_has_no_time_left_is_not_begun() -> None:
    breaker = CircuitBreaker("k", store=MemoryStore(), failure_threshold=1)
    with deadline.limit(0), pytest.raises(OperationTimeoutError, match="not begun"):
        breaker.call(int)
    assert breaker.snapshot().state == "closed"


def test_threads_of_operations_that_hung_end_with_them() -> None:
    breaker = CircuitBreaker("k", store=MemoryStore(), timeout=0.05, failure_threshold=100)

    def operations() -> int:
        return sum(thread.name == "guard-operation" for thread in threading.enumerate())

    before = operations()
    for _ in range(10):
        with pytest.raises(OperationTimeoutError):
            breaker.call(time.sleep, 0.5)
    until = time.monotonic() + 20
    while operations() > before:
        assert time.monotonic() < until, "threads are left"
        time.sleep(0.02)


def test_a_coroutine_function_must_be_awaited(breaker: CircuitBreaker) -> None:
    async def book() -> None: ...

    with pytest.raises(GuardError, match="coroutine"):
        breaker.call(book)  # type: ignore[unused-coroutine]
    assert breaker.snapshot().failure_count == 0


def test_without_a_timeout_the_caller_s_own_thread_works() -> None:
    breaker = CircuitBreaker("k", store=MemoryStore(), timeout=None)
    assert breaker.call(threading.current_thread) is threading.current_thread()


def test_context_variables_are_seen(breaker: CircuitBreaker) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="none")
    tenant.set("mine")
    assert breaker.call(tenant.get) == "mine"


def test_threads_are_not_serialised(breaker: CircuitBreaker) -> None:
    together = threading.Barrier(8)  # would break if one had to wait for another
    threads = [threading.Thread(target=breaker.call, args=(together.wait, 20)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not together.broken
    assert breaker.snapshot().failure_count == 0


def test_of_many_threads_one_probes(breaker: CircuitBreaker, clock: Clock) -> None:
    trip(breaker)
    clock.moment += 30
    together = threading.Barrier(20)
    passed: list[int] = []
    refused: list[int] = []

    def operate() -> None:
        passed.append(1)
        time.sleep(0.5)

    def probe() -> None:
        together.wait(20)
        try:
            breaker.call(operate)
        except CircuitOpenError:
            refused.append(1)

    threads = [threading.Thread(target=probe) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(passed), len(refused)) == (1, 19)


def test_decorator(breaker: CircuitBreaker) -> None:
    @breaker
    def add(a: int, b: int = 1) -> int:
        """Add."""
        return a + b

    assert (add(1, b=2), add.__name__, add.__doc__) == (3, "add", "Add.")


def test_block(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        with pytest.raises(ConnectionError), breaker:
            fail()
    with pytest.raises(CircuitOpenError), breaker:
        pytest.fail("it was let through")


def test_a_block_that_took_too_long_is_a_failure() -> None:
    breaker = CircuitBreaker("k", store=MemoryStore(), timeout=0.05)
    with breaker, breaker:
        time.sleep(0.2)
    assert breaker.snapshot().failure_count == 2


# async


def in_loop(test: Callable[[CircuitBreaker, Clock], Awaitable[None]]) -> Callable[[CircuitBreaker, Clock], None]:
    """Run a coroutine function as a test."""

    def run(breaker: CircuitBreaker, clock: Clock) -> None:
        async def main() -> None:
            await test(breaker, clock)

        asyncio.run(main())

    return run


async def fail_async() -> None:
    raise ConnectionError("down")


@in_loop
async def test_async_call_opens_and_recovers(breaker: CircuitBreaker, clock: Clock) -> None:
    @breaker
    async def answer(value: int) -> int:
        await asyncio.sleep(0)
        return value

    assert await answer(7) == 7
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await breaker.call_async(fail_async)
    with pytest.raises(CircuitOpenError):
        await answer(7)
    clock.moment += 30
    assert [await answer(7), await answer(8)] == [7, 8]
    assert breaker.snapshot().state == "closed"


@in_loop
async def test_async_timeout_cancels_and_counts(breaker: CircuitBreaker, clock: Clock) -> None:
    hasty = CircuitBreaker("hasty", store=MemoryStore(), timeout=0.1, failure_threshold=1)
    cancelled = []

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    with pytest.raises(OperationTimeoutError):
        await hasty.call_async(hang)
    assert cancelled == [1]
    assert hasty.snapshot().state == "open"


@in_loop
async def test_cancelled_by_the_caller_is_ignored(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await breaker.call_async(fail_async)
    clock.moment += 30
    task = asyncio.create_task(breaker.call_async(asyncio.sleep, 60))
    while breaker.snapshot().probe_token is None:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    snapshot = breaker.snapshot()
    assert (snapshot.state, snapshot.probe_token, snapshot.success_count) == ("half_open", None, 0)


@in_loop
async def test_a_timeout_of_the_operation_s_own_is_its_error(breaker: CircuitBreaker, clock: Clock) -> None:
    async def times_out() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await breaker.call_async(times_out)
    assert breaker.snapshot().failure_count == 1


@in_loop
async def test_tasks_are_not_serialised_and_nest(breaker: CircuitBreaker, clock: Clock) -> None:
    arrived = 0
    everybody = asyncio.Event()

    async def wait_for_all() -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 20:
            everybody.set()
        async with breaker, breaker:
            await everybody.wait()

    await asyncio.gather(*(breaker.call_async(wait_for_all) for _ in range(20)))
    assert breaker.snapshot().failure_count == 0


# input


@pytest.mark.parametrize("key", ["", "  ", "x" * 201, "x" * 10_000, "a\x00b", None, 7])
def test_keys_that_cannot_be(key: str) -> None:
    with pytest.raises(GuardError, match="key"):
        CircuitBreaker(key, store=MemoryStore())


@pytest.mark.parametrize(
    "options",
    [{"failure_threshold": 0}, {"success_threshold": 0}, {"cooldown": -1}, {"timeout": 0}, {"mode": "lazy"}],
)
def test_options_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(GuardError) as refused:
        CircuitBreaker("k", store=MemoryStore(), **options)  # type: ignore[arg-type]
    assert refused.value.fix


def test_key_names() -> None:
    assert guard.service_key(7) == "appointment_booking:service:7"
    assert guard.staff_key(3) == "appointment_booking:staff:3"
    assert guard.GLOBAL_KEY == "appointment_booking:global"


def test_breakers_of_one_store_share_it() -> None:
    store = MemoryStore()
    trip(CircuitBreaker("k", store=store))
    with pytest.raises(CircuitOpenError):
        CircuitBreaker("k", store=store).call(int)
    assert CircuitBreaker("k", store=FallbackStore(store)).snapshot().state == "open"

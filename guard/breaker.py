"""The circuit breaker: calls to a remote side that fails are given up at once, until it has recovered.

    breaker = CircuitBreaker(service_key(7), store=FallbackStore(RedisStore(url), PostgresStore(dsn)))
    booking = breaker.call(calendar.book, slot)

The state machine is the store's; here is what happens around one call. See `guard.stores.base`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from contextvars import ContextVar
from types import CoroutineType, TracebackType
from typing import Any, Literal, ParamSpec, TypeVar

from guard import deadline
from guard.errors import CircuitOpenError, GuardError, OperationTimeoutError
from guard.stores.base import Outcome, Policy, Snapshot, Store, check_key
from guard.stores.fallback import FallbackStore

P = ParamSpec("P")
T = TypeVar("T")

#: How many times the operation's timeout a probe's lease lasts.
LEASE_FACTOR = 1.5
#: The longest operation that a breaker without a timeout is made for, in seconds.
LONGEST_OPERATION = 60.0


def service_key(service_id: int) -> str:
    """The circuit of bookings of one service."""
    return f"appointment_booking:service:{service_id}"


def staff_key(staff_id: int) -> str:
    """The circuit of bookings with one staff member."""
    return f"appointment_booking:staff:{staff_id}"


#: The circuit of all bookings.
GLOBAL_KEY = "appointment_booking:global"


class CircuitBreaker:
    """Guards calls by the circuit `key`. Make one and share it: threads and tasks are not serialised.

    `store` may be any store; `FallbackStore(RedisStore(url), PostgresStore(dsn))` is shared, fast and durable. When no
    store answers, the memory of this process takes over.

    `failure_threshold` consecutive failures open the circuit; after `cooldown` seconds one probe at a time may pass;
    `success_threshold` consecutive successes close it.

    `timeout`, in seconds, is real. An async call is cancelled. A sync call runs in another thread, and after the
    timeout the caller is free and a late result discarded; with None it runs in the caller's own thread, however long
    it takes. The operation can ask how long it may still take: `guard.remaining_time()`.

    `mode`: `cached` answers from a local view that is at most a second old, without a trip to the store while the
    circuit is closed and sound, or open; `strict` asks the store on every call.

    Exceptions in `failures` count, unless they are in `ignored`. What the caller cancelled, and an inner circuit that
    is open, are ignored.
    """

    def __init__(
        self,
        key: str,
        *,
        store: Store | FallbackStore,
        failure_threshold: int = 3,
        cooldown: float = 30.0,
        success_threshold: int = 2,
        timeout: float | None = 10.0,
        mode: Literal["cached", "strict"] = "cached",
        failures: tuple[type[BaseException], ...] = (Exception,),
        ignored: tuple[type[BaseException], ...] = (),
    ) -> None:
        check_key(key)
        if failure_threshold < 1 or success_threshold < 1 or cooldown < 0 or (timeout is not None and timeout <= 0):
            raise GuardError(
                "A breaker's thresholds are at least 1, its cooldown at least 0 and its timeout more than 0.",
                fix="Pass timeout=None for an operation that may take as long as it likes.",
            )
        if mode not in ("cached", "strict"):
            raise GuardError(f"{mode!r} is not a mode of a breaker.", fix="Use cached or strict.")
        self.key = key
        self.timeout = timeout
        self._cached = mode == "cached"
        self._policy = Policy(
            failure_threshold=failure_threshold,
            success_threshold=success_threshold,
            cooldown=cooldown,
            lease=(timeout or LONGEST_OPERATION) * LEASE_FACTOR,
        )
        self._failures = failures
        self._ignored = (*ignored, CircuitOpenError)
        self._store = FallbackStore.of(store)
        self._views = self._store.views
        self._counters = self._store.counters(key)
        self._blocks: ContextVar[tuple[_Block, ...]] = ContextVar("guard_blocks", default=())

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function, if the circuit lets it pass, and record what becomes of it.

        Raises CircuitOpenError if it does not pass, OperationTimeoutError if it takes too long, and else what the
        function raises.
        """
        seconds = self._time_left()
        token = self._admit()
        try:
            result = function(*args, **kwargs) if seconds is None else deadline.run(function, args, kwargs, seconds)
        except BaseException as error:
            self._failed(token, error)
            raise
        if isinstance(result, CoroutineType):
            result.close()
            self._record(token, "ignored", None)
            raise GuardError("A coroutine function was given to call().", fix="Await call_async() instead.")
        self._succeeded(token)
        return result

    async def call_async(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `call`, for a coroutine function. Its task is cancelled after the timeout."""
        async with self:
            return await function(*args, **kwargs)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """As a decorator, of a function or a coroutine function."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await self.call_async(function, *args, **kwargs)

            return call_async  # type: ignore[return-value]  # a coroutine function, as the one that it wraps

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.call(function, *args, **kwargs)

        return call

    def __enter__(self) -> CircuitBreaker:
        """Guard a block. It runs in the caller's thread: it can ask for its remaining time, but it is not ended.

        A block that took longer than the timeout counts as a failure.
        """
        self._time_left()
        block = _Block(self._admit())
        block.stack = ExitStack()
        block.stack.enter_context(deadline.limit(self.timeout))
        self._blocks.set((*self._blocks.get(), block))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block = self._leave()
        assert isinstance(block.stack, ExitStack)  # noqa: S101  # __enter__ made it
        late = self.timeout is not None and time.monotonic() - block.started > self.timeout
        block.stack.close()
        if error is not None:
            self._failed(block.token, error)
        elif late:
            self._failed(block.token, OperationTimeoutError())
        else:
            self._succeeded(block.token)

    async def __aenter__(self) -> CircuitBreaker:
        """Guard a block of a coroutine; it is cancelled after the timeout, and raises OperationTimeoutError."""
        self._time_left()
        token = self._admit_locally() if self._cached else None
        block = _Block(token or await self._admit_in_thread())
        block.stack = AsyncExitStack()
        left = block.stack.enter_context(deadline.limit(self.timeout))
        if self.timeout is not None:
            block.timer = await block.stack.enter_async_context(asyncio.timeout(left))
        self._blocks.set((*self._blocks.get(), block))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block = self._leave()
        assert isinstance(block.stack, AsyncExitStack)  # noqa: S101  # __aenter__ made it
        try:
            await block.stack.__aexit__(kind, error, traceback)
        except TimeoutError as expired:
            if block.timer is not None and block.timer.expired():
                took_too_long = OperationTimeoutError(f"The operation took longer than the {self.timeout:g} s it had.")
                await self._settle_in_thread(block.token, took_too_long)
                raise took_too_long from expired
            raise
        await self._settle_in_thread(block.token, error)

    def snapshot(self) -> Snapshot:
        """The circuit as the stores know it now."""
        self._store.reconcile([self.key])
        return self._store.views[self.key].snapshot

    # admission

    def _admit(self) -> str:
        """The token of an admission. Raises CircuitOpenError."""
        if self._cached and (token := self._admit_locally()):
            return token
        reply = self._store.acquire(self.key, self._policy.lease)
        if reply.allowed:
            assert reply.token is not None  # noqa: S101  # stores give one with every admission
            return reply.token
        retry_after = self._policy.cooldown if reply.retry_after is None else reply.retry_after
        raise self._rejected(reply.snapshot.shown_state, retry_after)

    def _admit_locally(self) -> str | None:
        """The token of an admission by the local view; None where the store must be asked. Raises CircuitOpenError."""
        view = self._views.get(self.key)
        if view is None:
            return None
        now = time.monotonic()
        if now >= view.fresh_until:
            return None
        view.used = True
        if view.passes:
            return view.token
        if now < view.open_until:
            raise self._rejected(view.snapshot.shown_state, min(view.open_until - now, self._policy.cooldown))
        return None

    async def _admit_in_thread(self) -> str:
        asking = asyncio.ensure_future(asyncio.to_thread(self._admit))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._release)  # what it is given nobody will use
            raise

    def _release(self, admission: asyncio.Future[str]) -> None:
        if not admission.cancelled() and admission.exception() is None:
            admission.get_loop().run_in_executor(None, self._record, admission.result(), "ignored", None)

    def _rejected(self, state: str, retry_after: float) -> CircuitOpenError:
        self._counters.add("rejected")
        return CircuitOpenError(self.key, state, retry_after)

    # outcome

    def _succeeded(self, token: str) -> None:
        self._counters.add("successes")
        if not self._nothing_to_record(token):
            self._record(token, "success", None)

    def _failed(self, token: str, error: BaseException) -> None:
        outcome = self._outcome(error)
        if outcome == "failure" or not self._nothing_to_record(token):
            self._record(token, outcome, type(error).__name__)

    async def _settle_in_thread(self, token: str, error: BaseException | None) -> None:
        if error is None:
            self._counters.add("successes")
        outcome: Outcome = "success" if error is None else self._outcome(error)
        if outcome != "failure" and self._nothing_to_record(token):
            return
        name = None if error is None else type(error).__name__
        await asyncio.shield(asyncio.to_thread(self._record, token, outcome, name))

    def _nothing_to_record(self, token: str) -> bool:
        """Whether a call that did not fail leaves the circuit as it is."""
        view = self._views.get(self.key)
        return view is not None and view.silent and view.token == token and time.monotonic() < view.fresh_until

    def _record(self, token: str, outcome: Outcome, error: str | None) -> None:
        self._store.record(self.key, token, outcome, self._policy, error)

    def _outcome(self, error: BaseException) -> Outcome:
        if isinstance(error, self._failures) and not isinstance(error, self._ignored):
            self._counters.add("failures")
            if isinstance(error, TimeoutError):
                self._counters.add("timeouts")
            return "failure"
        self._counters.add("ignored")
        return "ignored"

    def _time_left(self) -> float | None:
        """How long the operation may take. Raises OperationTimeoutError if the time is over before it began."""
        left = deadline.remaining_time()
        if left is None:
            return self.timeout
        if left == 0:
            raise OperationTimeoutError("No time is left for the operation: it was not begun.")
        return None if self.timeout is None else min(left, self.timeout)

    def _leave(self) -> _Block:
        *outer, block = self._blocks.get()
        self._blocks.set(tuple(outer))
        return block


class _Block:
    """One block that a breaker guards."""

    __slots__ = ("stack", "started", "timer", "token")

    def __init__(self, token: str) -> None:
        self.token = token
        self.started = time.monotonic()
        self.stack: ExitStack | AsyncExitStack | None = None
        self.timer: asyncio.Timeout | None = None

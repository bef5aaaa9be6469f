"""Retry with backoff, around a breaker and never inside one.

    free_slots = retry(deadline=60)(breaker(calendar.free_slots))

Only around what may be done twice: an operation that timed out may have taken effect.

The module is not called `retry`, so that `guard.retry` is the function whichever is loaded first.
"""

from __future__ import annotations

import functools
import inspect
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import tenacity

from guard import deadline as time_limit
from guard.errors import (
    BusyError,
    CircuitOpenError,
    ConnectionFailedError,
    GuardError,
    LockTimeoutError,
    OperationTimeoutError,
)

P = ParamSpec("P")
T = TypeVar("T")

#: By how much a delay is lengthened at most, as a part of it: proportional, so that it does not vanish in long delays.
JITTER = 0.1

_TRANSIENT_GUARD_ERRORS = (
    CircuitOpenError,
    OperationTimeoutError,
    ConnectionFailedError,
    LockTimeoutError,
    BusyError,
)
#: What a mistake in the program raises, or in its input: the next attempt would raise it too.
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    ValueError,
)
#: Classes of SQLSTATEs that may not come again: connection, rollback, resources, locks, operator, system.
_TRANSIENT_SQLSTATES = ("08", "40", "53", "55", "57", "58")
#: Statuses of HTTP below 500 that ask to come again.
_TRANSIENT_STATUSES = (408, 425, 429)

_log = logging.getLogger("guard.retry")


class RetryBudget:
    """How many retries there may be, whoever asks: `capacity` at once, and `per_second` more each second.

    Shared by calls to one remote side it keeps a fleet from answering an outage with a storm.
    """

    def __init__(
        self, capacity: float = 20, per_second: float = 2, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._per_second = per_second
        self._clock = clock
        self._tokens = capacity
        self._filled_at = clock()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take one retry; False where none is left."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._per_second)
            self._filled_at = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def http_status(error: BaseException) -> int | None:
    """The HTTP status that an error tells of; None if it tells of none.

    Clients keep it on the error or on its response: requests and httpx in `status_code`, aiohttp in `status`, urllib in
    `code`.
    """
    for source in (getattr(error, "response", None), error):
        for name in ("status_code", "status", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int) and 100 <= status <= 599:
                return status
    return None


def can_succeed(error: BaseException) -> bool:
    """Whether another attempt may end otherwise: not for mistakes, refusals, and what the remote side calls wrong."""
    if isinstance(error, GuardError):
        return isinstance(error, _TRANSIENT_GUARD_ERRORS)
    if not isinstance(error, Exception) or isinstance(error, _MISTAKES):
        return False
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str):
        return sqlstate.startswith(_TRANSIENT_SQLSTATES)
    status = http_status(error)
    if status is not None:
        return status >= 500 or status in _TRANSIENT_STATUSES
    return True


def retry(
    *,
    attempts: int = 5,
    base_delay: float = 1.0,
    max_delay: float = 8.0,
    deadline: float | None = None,
    budget: RetryBudget | None = None,
    when: Callable[[BaseException], bool] = can_succeed,
    sleep: Callable[[float], Any] | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Call the decorated function again when it fails: after 1, 2, 4 and 8 s, each up to 10 % longer.

    Works for functions and coroutine functions. Gives up, and raises the last error, after `attempts`; when the next
    one would begin after `deadline` seconds (the remaining time is passed down: `guard.remaining_time()`); when
    `budget` has none left; and at once where `when` says that it cannot succeed. A circuit that is open is not asked
    again before its retry_after. Each attempt is logged to `guard.retry`.
    """
    if attempts < 1 or base_delay < 0 or max_delay < 0 or (deadline is not None and deadline <= 0):
        raise GuardError(
            "A retry has at least 1 attempt, no negative delays and a deadline of more than 0.",
            fix="Pass attempts=1 to call the function once.",
        )
    allowance = budget or RetryBudget()

    def wait(state: tenacity.RetryCallState) -> float:
        delay = min(base_delay * 2.0 ** (state.attempt_number - 1), max_delay)
        delay *= 1 + random.uniform(0, JITTER)  # noqa: S311  # no secret
        error = _error(state)
        return max(delay, error.retry_after) if isinstance(error, CircuitOpenError) else delay

    def stop(state: tenacity.RetryCallState) -> bool:
        left = time_limit.remaining_time()
        if state.attempt_number >= attempts:
            why = "it was the last attempt"
        elif left is not None and state.upcoming_sleep >= left:
            why = f"only {left:.1f} s are left"
        elif not allowance.take():
            why = "the retry budget is used up"
        else:
            return False
        _log.warning("attempt %d of %s failed, and %s: %r", state.attempt_number, _name(state), why, _error(state))
        return True

    def judge(state: tenacity.RetryCallState) -> bool:
        error = _error(state)
        if error is not None and not when(error):
            _log.info("attempt %d of %s failed for good: %r", state.attempt_number, _name(state), error)
            return False
        if error is None and state.attempt_number > 1:
            _log.info("attempt %d of %s succeeded", state.attempt_number, _name(state))
        return error is not None

    def before_sleep(state: tenacity.RetryCallState) -> None:
        _log.info(
            "attempt %d of %s failed, again in %.2f s: %r",
            state.attempt_number,
            _name(state),
            state.upcoming_sleep,
            _error(state),
        )

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        options: dict[str, Any] = {
            "wait": wait,
            "stop": stop,
            "retry": judge,
            "before_sleep": before_sleep,
            "reraise": True,
        }
        if sleep is not None:
            options["sleep"] = sleep
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with time_limit.limit(deadline):
                    return await tenacity.AsyncRetrying(**options)(function, *args, **kwargs)

            return call_async  # type: ignore[return-value]  # a coroutine function, as the one that it wraps

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with time_limit.limit(deadline):
                return tenacity.Retrying(**options)(function, *args, **kwargs)

        return call

    return decorate


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def _name(state: tenacity.RetryCallState) -> str:
    return getattr(state.fn, "__qualname__", repr(state.fn))

"""Retry: when it comes again, when it gives up, and what it passes down. No test waits: the sleeps are recorded."""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.error
from collections.abc import Callable
from email.message import Message
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from guard import (
    CircuitBreaker,
    CircuitOpenError,
    GuardError,
    MemoryStore,
    OperationTimeoutError,
    RetryBudget,
    remaining_time,
    retry,
)
from guard.errors import RefusedError
from guard.retrying import can_succeed, http_status


class Remote:
    """Fails with the given errors, one after the other, and then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "booked"


class ClientError(Exception):
    """An error with these attributes."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


@pytest.fixture
def slept() -> list[float]:
    return []


def outage(times: int) -> Remote:
    return Remote(*(ConnectionError(str(n)) for n in range(times)))


def wrap(remote: Remote, slept: list[float], **options: Any) -> Callable[[], str]:
    return retry(sleep=slept.append, **options)(remote.__call__)


def test_delays_double_and_have_proportional_jitter(slept: list[float]) -> None:
    assert wrap(outage(4), slept)() == "booked"
    for delay, base in zip(slept, (1, 2, 4, 8), strict=True):
        assert base <= delay <= base * 1.1
    assert len({delay / base for delay, base in zip(slept, (1, 2, 4, 8), strict=True)}) > 1


def test_delays_are_capped(slept: list[float]) -> None:
    wrap(outage(9), slept, attempts=10)()
    assert max(slept) <= 8.8


def test_the_last_error_is_raised(slept: list[float]) -> None:
    remote = outage(9)
    with pytest.raises(ConnectionError, match="2"):
        wrap(remote, slept, attempts=3)()
    assert (remote.calls, len(slept)) == (3, 2)


@pytest.mark.parametrize(
    "error",
    [
        TypeError(),
        ValueError(),
        KeyError(),
        RefusedError("no"),
        GuardError("no"),
        psycopg.errors.UniqueViolation(),
        psycopg.errors.CheckViolation(),
        KeyboardInterrupt(),
    ],
)
def test_what_cannot_succeed_is_not_tried_again(slept: list[float], error: BaseException) -> None:
    remote = Remote(error)
    with pytest.raises(type(error)):
        wrap(remote, slept)()
    assert remote.calls == 1


def test_what_may_succeed() -> None:
    class HttpError(Exception):
        def __init__(self, status: int) -> None:
            self.status_code = status

    transient = [OperationTimeoutError(), CircuitOpenError("k", "open", 1), TimeoutError(), OSError(), HttpError(503)]
    transient += [HttpError(429), psycopg.errors.SerializationFailure(), psycopg.errors.AdminShutdown()]
    assert all(can_succeed(error) for error in transient)
    assert not any(can_succeed(HttpError(status)) for status in (400, 401, 404, 409, 422))


@pytest.mark.parametrize("status", [400, 404, 409, 429, 503])
def test_the_status_of_an_http_error_is_found_wherever_its_client_keeps_it(status: int) -> None:
    errors = {
        "urllib": urllib.error.HTTPError("http://calendar", status, "no", Message(), None),
        "requests, httpx": ClientError(response=SimpleNamespace(status_code=status)),
        "its own, and no response": ClientError(response=None, status_code=status),
        "aiohttp": ClientError(status=status, message="no"),
        "SDKs": ClientError(status_code=status, code="slot_taken"),
    }
    assert {client: http_status(error) for client, error in errors.items()} == dict.fromkeys(errors, status)
    assert {can_succeed(error) for error in errors.values()} == {status in (429, 503)}


def test_what_is_no_http_status_is_taken_for_none() -> None:
    # aiohttp's status before there is an answer, a websocket's close code, an SDK's own code, a flag
    errors = [ClientError(**held) for held in ({"status": 0}, {"code": 1006}, {"code": "busy"}, {"status": True}, {})]
    for error in (*errors, OSError(5, "io")):
        assert http_status(error) is None
        assert can_succeed(error)


def test_a_refusal_by_http_is_called_once(slept: list[float]) -> None:
    remote = Remote(urllib.error.HTTPError("http://calendar", 404, "no", Message(), None))
    with pytest.raises(urllib.error.HTTPError):
        wrap(remote, slept)()
    assert (remote.calls, slept) == (1, [])


def test_an_open_circuit_is_not_asked_before_its_retry_after(slept: list[float]) -> None:
    wrap(Remote(CircuitOpenError("k", "open", 30)), slept)()
    assert slept[0] >= 30
    remote = Remote(CircuitOpenError("k", "open", 30))
    with pytest.raises(CircuitOpenError):
        wrap(remote, slept, deadline=20)()
    assert remote.calls == 1


def test_the_deadline_bounds_all_attempts(slept: list[float]) -> None:
    remote = outage(9)
    with pytest.raises(ConnectionError):
        wrap(remote, slept, deadline=3, attempts=9)()
    assert remote.calls == 3  # the third delay, of 4 s, would end after it


def test_the_remaining_time_is_passed_down(slept: list[float]) -> None:
    seen: list[float | None] = []
    breaker = CircuitBreaker("k", store=MemoryStore(), timeout=10)

    @retry(deadline=5, sleep=lambda _: time.sleep(0.05))
    @breaker
    def book() -> str:
        seen.append(remaining_time())
        if len(seen) < 2:
            raise ConnectionError
        return "booked"

    assert book() == "booked"
    first, second = seen
    assert first is not None
    assert second is not None
    assert second < first <= 5


def test_a_budget_is_shared(slept: list[float]) -> None:
    moment = [0.0]
    budget = RetryBudget(capacity=3, per_second=1, clock=lambda: moment[0])
    first, second = outage(9), outage(9)
    for remote, calls in ((first, 4), (second, 1)):
        with pytest.raises(ConnectionError):
            wrap(remote, slept, budget=budget)()
        assert remote.calls == calls
    moment[0] += 2
    with pytest.raises(ConnectionError):
        wrap(second, slept, budget=budget)()
    assert second.calls == 1 + 3


def test_each_attempt_is_logged(slept: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "guard.retry"):
        wrap(outage(1), slept)()
        with pytest.raises(ConnectionError):
            wrap(outage(9), slept, attempts=2)()
    said = [record.getMessage() for record in caplog.records]
    assert [message.split(" of ")[0] for message in said] == ["attempt 1", "attempt 2", "attempt 1", "attempt 2"]
    assert "again in" in said[0]
    assert "succeeded" in said[1]
    assert "last attempt" in said[3]


def test_coroutine_functions() -> None:
    remote = outage(2)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    @retry(sleep=sleep, deadline=60)
    async def book() -> str:
        await asyncio.sleep(0)
        return remote()

    assert asyncio.run(book()) == "booked"
    assert len(slept) == 2


@pytest.mark.parametrize("options", [{"attempts": 0}, {"base_delay": -1}, {"deadline": 0}])
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(GuardError):
        retry(**options)

"""Books one appointment and dies at a given step: `python -m tests.booking_process DSN URL CALL KEY STEP`.

Steps are counted: before and after every statement, before the calendar is asked, after it has booked. The process
kills itself with SIGKILL when it comes to STEP; it prints `done N` with the number of steps if it gets through.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from guard import booking, database

T = TypeVar("T")


class Steps:
    def __init__(self, die_at: int) -> None:
        self.count = 0
        self.die_at = die_at

    def step(self) -> None:
        if self.count == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


class Calls:
    """No circuit breaker: calls."""

    def call(self, operation: Callable[..., T], /, *args: Any) -> T:
        return operation(*args)


def main(dsn: str, url: str, call_id: str, key: str, die_at: str) -> None:
    steps = Steps(int(die_at))

    class Connection(psycopg.Connection[Any]):
        def execute(self, *args: Any, **kwargs: Any) -> Any:
            steps.step()
            cursor = super().execute(*args, **kwargs)
            steps.step()
            return cursor

    database.connect = lambda dsn, **_: Connection.connect(dsn, autocommit=True)

    def remote(request: booking.Request, key: str) -> str:
        steps.step()
        body = json.dumps({"key": key, "request": request}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/bookings", body), timeout=10) as answer:
            uid = json.load(answer)["uid"]
        steps.step()
        return str(uid)

    call = int(call_id)
    request = {
        "staff_id": 1,
        "starts_at": f"2030-01-{call // 24 + 1:02}T{call % 24:02}:00:00Z",
        "ends_at": f"2030-01-{call // 24 + 1:02}T{call % 24:02}:30:00Z",
    }
    result = booking.BookingGuard(dsn, Calls()).book(call, request, remote, key=key)
    print(result.state, steps.count, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

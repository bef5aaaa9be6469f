"""A remote calendar over HTTP, for the demo and the tests: it books, and fails, hangs or dies on schedule.

    POST /bookings {"key": ..., "request": {...}}   201 {"uid": ...}; the same key again gives the same uid
    GET  /bookings?key=...                          200 {"uid": ... or null}

`schedule` says how the next requests to book are answered, one after the other; then it is `mode` that says so:

    ok     it books and answers
    fail   503, nothing is booked
    hang   no answer, nothing is booked
    late   it books, and answers after `late_seconds`
    die    it books, and closes the connection without an answer

`book` and `find` are what a gateway would have: they ask the calendar at the address CALENDAR_URL.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import Request, urlopen

from guard import remaining_time


class Calendar(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.schedule: deque[str] = deque()
        self.mode = "ok"
        self.late_seconds = 1.0
        self.stopped = threading.Event()
        #: the keys that it was asked to book, in order
        self.asked: list[str] = []
        self.bookings: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_mode(self, key: str) -> str:
        with self.lock:
            self.asked.append(key)
            return self.schedule.popleft() if self.schedule else self.mode

    def book(self, key: str) -> str:
        with self.lock:
            return self.bookings.setdefault(key, f"uid_{len(self.bookings) + 1}")


@contextmanager
def running() -> Iterator[Calendar]:
    """A calendar that answers until the block ends."""
    calendar = Calendar()
    thread = threading.Thread(target=calendar.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield calendar
    finally:
        calendar.stopped.set()
        calendar.shutdown()
        calendar.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Calendar

    def do_POST(self) -> None:
        key = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["key"]
        match self.server.next_mode(key):
            case "fail":
                self._answer(503, {"error": "the calendar is down"})
            case "hang":
                self.server.stopped.wait()
            case "late":
                uid = self.server.book(key)
                self.server.stopped.wait(self.server.late_seconds)
                self._answer(201, {"uid": uid})
            case "die":
                self.server.book(key)
                self.connection.close()
            case _:
                self._answer(201, {"uid": self.server.book(key)})

    def do_GET(self) -> None:
        (key,) = parse_qs(urlsplit(self.path).query)["key"]
        with self.server.lock:
            self._answer(200, {"uid": self.server.bookings.get(key)})

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        with contextlib.suppress(ConnectionError):  # nobody waits for it any more
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def book(request: dict[str, Any], key: str) -> str:
    """Book `request`; the calendar's id of the booking."""
    body = json.dumps({"key": key, "request": request}).encode()
    with urlopen(Request(f"{os.environ['CALENDAR_URL']}/bookings", body), timeout=remaining_time()) as answer:  # noqa: S310
        return str(json.load(answer)["uid"])


def find(key: str) -> str | None:
    """The id of the booking that was made for this key, if any."""
    with urlopen(f"{os.environ['CALENDAR_URL']}/bookings?key={quote(key)}", timeout=5) as answer:  # noqa: S310
        uid: str | None = json.load(answer)["uid"]
    return uid

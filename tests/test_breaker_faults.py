"""Redis and PostgreSQL frozen, killed and started again under the load of several processes that are killed too.

The remote side fails all the while, so that every call that comes through an open circuit is a probe. The workers log
when each call began and ended, by the clock that all processes of the machine share.
"""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from guard import CircuitBreaker, CircuitOpenError, FallbackStore, PostgresStore, RedisStore
from guard.server import EmbeddedServer
from guard.stores.base import ticket
from tests.databases import run_guard
from tests.redis_servers import RedisServer
from tests.test_redis import eventually

pytestmark = pytest.mark.slow

KEY = "appointment_booking:global"
COOLDOWN = 0.3
TIMEOUT = 2.0
LEASE = 3.0


def work(redis_url: str, dsn: str, folder: str, mode: Any) -> None:
    """Call the remote side through the breaker, again and again, and log what happens."""
    logging.disable()
    store = FallbackStore(RedisStore(redis_url), PostgresStore(dsn))
    breaker = CircuitBreaker(KEY, store=store, cooldown=COOLDOWN, timeout=TIMEOUT, mode=mode)
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_APPEND)
    healthy = Path(folder, "healthy")
    hang = Path(folder, "hang")

    def say(what: str, number: int, kind: str = "") -> None:
        line = {"what": what, "pid": os.getpid(), "number": number, "kind": kind, "at": time.monotonic()}
        os.write(log, (json.dumps(line) + "\n").encode())

    def remote(number: int, kind: str) -> None:
        say("begin", number, kind)
        try:
            time.sleep(60 if hang.exists() else 0.05)
            if not healthy.exists():
                raise ConnectionError("down")
        finally:
            say("end", number, kind)

    number = 0
    while True:
        number += 1
        try:
            # as call() does it, but with the token in sight
            token = breaker._admit()
            kind = "pass" if token == ticket(int(token.replace("-", ""), 16) & (2**63 - 1)) else "probe"
            try:
                remote(number, kind)
            except ConnectionError as error:
                breaker._failed(token, error)
            else:
                breaker._succeeded(token)
        except CircuitOpenError:
            pass
        time.sleep(0.005)


@dataclass
class Call:
    """One call that a worker made; `end` is infinite where it was killed in the middle."""

    pid: int
    kind: str
    begin: float
    end: float = float("inf")


class Fleet:
    """The servers, and the workers that use them."""

    def __init__(self, redis: RedisServer, postgres: EmbeddedServer, folder: Path) -> None:
        self.redis = redis
        self.postgres = postgres
        self.folder = folder
        self.workers: list[BaseProcess] = []
        (folder / "log").touch()

    def start(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        for number in range(workers):
            arguments = (self.redis.url, self.postgres.dsn(), str(self.folder), "strict" if number % 2 else "cached")
            worker = context.Process(target=work, args=arguments, daemon=True)
            worker.start()
            self.workers.append(worker)

    def stop(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join()

    def calls(self) -> list[Call]:
        found: dict[tuple[int, int], Call] = {}
        for line in (self.folder / "log").read_text().splitlines():
            said = json.loads(line)
            name = (said["pid"], said["number"])
            if said["what"] == "begin":
                found[name] = Call(said["pid"], said["kind"], said["at"])
            else:
                found[name].end = said["at"]
        return sorted(found.values(), key=lambda call: call.begin)

    def probes(self, since: float = 0) -> list[Call]:
        return [call for call in self.calls() if call.kind == "probe" and call.begin >= since]

    def state(self) -> str:
        with psycopg.connect(self.postgres.dsn()) as connection:
            rows = connection.execute("select state from guard.circuit_breaker_states").fetchall()
        return str(rows[0][0]) if rows else "closed"

    def signal_postgres(self, number: int) -> None:
        pid = self.postgres.status().pid
        assert pid is not None
        main = psutil.Process(pid)
        for process in [main, *main.children(recursive=True)]:
            process.send_signal(number)

    def kill_postgres(self) -> None:
        pid = self.postgres.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.postgres.is_running(), 30)


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    home = Path(tempfile.mkdtemp(prefix="guard-"))
    home.chmod(0o755)
    postgres = EmbeddedServer(home / "home")
    postgres.up()
    applied = run_guard(postgres.dsn(), "apply", timeout=120)
    assert applied.returncode == 0, applied.stderr
    fleet = Fleet(redis_server, postgres, tmp_path)
    yield fleet
    fleet.stop()
    postgres.down()
    shutil.rmtree(home)


def faults(fleet: Fleet) -> list[tuple[str, Callable[[], None], Callable[[], Any]]]:
    return [
        ("Redis frozen", fleet.redis.freeze, fleet.redis.thaw),
        ("Redis killed", fleet.redis.kill, fleet.redis.start),
        (
            "PostgreSQL frozen",
            lambda: fleet.signal_postgres(signal.SIGSTOP),
            lambda: fleet.signal_postgres(signal.SIGCONT),
        ),
        ("PostgreSQL killed", fleet.kill_postgres, fleet.postgres.up),
    ]


def test_one_probe_at_a_time_and_no_open_state_lost(fleet: Fleet) -> None:
    fleet.start(4)
    eventually(lambda: fleet.state() != "closed", 30)
    eventually(lambda: len({call.pid for call in fleet.calls()}) == 4 or len(fleet.probes()) > 5, 30)
    time.sleep(1)  # every worker has heard of it
    opened = time.monotonic()
    for name, begin, end in faults(fleet):
        begin()
        moment = time.monotonic()
        eventually(lambda moment=moment: len(fleet.probes(moment)) >= 2, 15)  # type: ignore[misc]
        end()
        moment = time.monotonic()
        eventually(lambda moment=moment: len(fleet.probes(moment)) >= 2, 15)  # type: ignore[misc]
        assert fleet.state() != "closed", name
    probes = fleet.probes()
    for one, other in itertools.pairwise(probes):
        assert other.begin >= one.end, "two probes at once"
    passed = [call for call in fleet.calls() if call.kind == "pass" and call.begin > opened]
    assert passed == [], "a call passed a circuit that was open"

    (fleet.folder / "healthy").touch()
    recovered = time.monotonic()
    eventually(lambda: [call for call in fleet.calls() if call.kind == "pass" and call.begin > recovered], 15)
    eventually(lambda: fleet.state() == "closed", 15)


def test_recovery_within_the_lease_after_the_prober_was_killed(fleet: Fleet) -> None:
    fleet.start(3)
    eventually(lambda: fleet.state() != "closed", 30)
    eventually(lambda: fleet.probes(), 30)
    (fleet.folder / "hang").touch()
    (hanging,) = eventually(lambda: [p for p in fleet.probes() if p.end == float("inf")][-1:], 15)
    os.kill(hanging.pid, signal.SIGKILL)
    killed = time.monotonic()
    (fleet.folder / "hang").unlink()
    (following,) = eventually(lambda: fleet.probes(killed)[:1], 20)
    assert following.pid != hanging.pid
    assert hanging.begin + LEASE - 0.5 <= following.begin <= hanging.begin + LEASE + 3

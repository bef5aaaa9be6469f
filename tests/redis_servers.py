"""Redis processes of the tests' own, as fixtures.

redis_server    one Redis, empty; it can be frozen, killed and started again
redis_cluster   the URL of a node of a Redis Cluster of three masters
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

import port_for
import pytest
import redis


class RedisServer:
    """A redis-server on the loopback address, with its files in a folder of its own. It keeps nothing on disk."""

    def __init__(self, *options: str) -> None:
        options = ("--save", "", "--appendonly", "no", "--loglevel", "warning", *options)
        self._choose_port()
        self._options = options
        self._folder = tempfile.mkdtemp(prefix="guard-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    def _choose_port(self) -> None:
        # below those that the system gives to clients, and so is the port 10,000 higher, where a cluster's nodes talk
        self.port = port_for.select_random(set(range(12_000, 22_000)))
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        """Start it, on its port if it ran before, and wait until it answers."""
        for _ in range(5):
            first = self._process is None
            if self._run():
                return self
            assert first, "redis-server did not start again"
            self._process = None
            self._choose_port()  # somebody else was quicker
        raise AssertionError("redis-server found no port")

    def _run(self) -> bool:
        self._process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder, *self._options],
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 20
        while True:
            try:
                with redis.Redis(port=self.port) as client:
                    mine = client.info("server")["process_id"] == self._process.pid
                return mine and self._process.poll() is None
            except redis.ConnectionError:
                if self._process.poll() is not None:
                    return False
                assert time.monotonic() < until, "redis-server did not start"
                time.sleep(0.01)

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._folder)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.remove()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[str]:
    options = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000")
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(3):
            node = RedisServer(*options)
            stack.callback(node.remove)
            nodes.append(node.start())
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "0", "--cluster-yes"],
            check=True,
            capture_output=True,
        )
        for node in nodes:
            until = time.monotonic() + 30
            while node.client.cluster("INFO")["cluster_state"] != "ok":
                assert time.monotonic() < until, "the cluster did not form"
                time.sleep(0.05)
        yield nodes[0].url

"""The SQL breaker behind PgBouncer in transaction mode, where a session belongs to nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import port_for
import psycopg
import pytest
from psycopg import conninfo

from guard import CircuitBreaker, CircuitOpenError, PostgresStore
from guard.stores.base import Policy
from tests.test_redis import eventually, trip


@pytest.fixture
def pooled(database: str) -> Iterator[str]:
    """The same database, through PgBouncer with two server connections."""
    folder = Path(tempfile.mkdtemp(prefix="guard-pgbouncer-"))
    server = conninfo.conninfo_to_dict(database)
    port = port_for.select_random()
    (folder / "users.txt").write_text(f'"{server["user"]}" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{server['dbname']} = host={server['host']} port={server['port']} user={server['user']}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npool_mode = transaction\n"
        f"auth_type = trust\nauth_file = {folder}/users.txt\ndefault_pool_size = 2\nmax_client_conn = 50\n"
    )
    folder.chmod(0o755)
    user = ["--user", "postgres"] if os.geteuid() == 0 else []  # it refuses root
    process = subprocess.Popen(["pgbouncer", "--quiet", *user, str(folder / "pgbouncer.ini")])
    dsn = f"postgresql://{server['user']}@127.0.0.1:{port}/{server['dbname']}"

    def answers() -> bool:
        try:
            psycopg.connect(dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    eventually(answers, 20)
    yield dsn
    process.kill()
    process.wait()
    shutil.rmtree(folder)


def test_it_works(pooled: str) -> None:
    breaker = CircuitBreaker("k", store=PostgresStore(pooled, timeout=10), mode="strict")
    assert [breaker.call(int) for _ in range(20)] == [0] * 20
    trip(breaker)
    with pytest.raises(CircuitOpenError):
        breaker.call(int)
    breaker._store.close()


def test_of_many_sessions_one_probes(pooled: str) -> None:
    stores = [PostgresStore(pooled, timeout=20) for _ in range(10)]
    policy = Policy(failure_threshold=1, cooldown=0)
    token = stores[0].acquire("k", 60).token
    assert token is not None
    stores[0].record("k", token, "failure", policy)
    together = threading.Barrier(10)
    probes: list[str | None] = []

    def probe(store: PostgresStore) -> None:
        together.wait(20)
        reply = store.acquire("k", 60)
        if reply.allowed:
            probes.append(reply.token)

    threads = [threading.Thread(target=probe, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(probes) == 1
    for store in stores:
        store.close()

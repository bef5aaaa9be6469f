"""guard notify, through apprise, to a real web server and a real mail server on this machine."""

from __future__ import annotations

import email
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import port_for
import pytest
from aiosmtpd.controller import Controller
from click.testing import Result

from tests.catalog import execute, query
from tests.databases import GUARD
from tests.processes import invoke, wait_until

pytestmark = pytest.mark.slow


class WebSink:
    """A web server that keeps what is posted to it. `status` is its answer; None: it answers a byte at a time."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.status: int | None = 200
        self.closing = threading.Event()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sink.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if sink.status is None:
                    self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                    while not sink.closing.wait(0.5):
                        self.wfile.write(b"x")
                else:
                    self.send_response(sink.status)
                    self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a sender that hung up is no error
        self.host = f"127.0.0.1:{self.server.server_port}"

    def titles(self) -> list[str]:
        return [message["title"] for message in self.received]


@contextmanager
def web_sink() -> Iterator[WebSink]:
    sink = WebSink()
    thread = threading.Thread(target=sink.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield sink
    finally:
        sink.closing.set()
        sink.server.shutdown()
        sink.server.server_close()
        thread.join()


@pytest.fixture
def web() -> Iterator[WebSink]:
    with web_sink() as sink:
        yield sink


class Mailbox:
    def __init__(self) -> None:
        self.received: list[Message] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802  # aiosmtpd's name
        self.received.append(email.message_from_bytes(envelope.content))
        return "250 OK"


@pytest.fixture
def mail() -> Iterator[tuple[str, Mailbox]]:
    """The address of a mail server as a channel, and what arrives there."""
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port_for.select_random())
    controller.start()
    try:
        yield f"mailto://127.0.0.1:{controller.port}/?from=guard@example.com&to=ops@example.com", mailbox
    finally:
        controller.stop()


def tell(dsn: str, kind: str = "job_failed", severity: str = "critical") -> None:
    execute(dsn, f"select guard.notify('{severity}', '{kind}', null, null, null, 'what happened')")


def notify(dsn: str, channels: str, *arguments: str) -> Result:
    return invoke(dsn, "notify", *arguments, GUARD_CHANNELS=channels)


def start(dsn: str, channels: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "GUARD_"))}
    return subprocess.Popen(
        [GUARD, "--dsn", dsn, "notify", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=kept | {"GUARD_CHANNELS": channels},
        **{"stderr": subprocess.PIPE} | options,
    )


def make_due(dsn: str) -> None:
    """Time passes: what waits is due."""
    execute(dsn, "update guard.deliveries set next_attempt_at = now() where status = 'pending'")


def test_a_thousand_events_are_one_message_on_the_web_and_by_mail(
    database: str, web: WebSink, mail: tuple[str, Mailbox]
) -> None:
    address, mailbox = mail
    execute(
        database,
        "select guard.notify('critical', 'missing_appointment', 'call', g, 1, 'call ' || g || ' <b> +4915112345678')"
        " from generate_series(1, 1000) as g",
    )
    done = notify(database, f"json://{web.host} {address}", "--json")
    assert done.exit_code == 0, done.output
    assert [(outcome["channel"].split(":")[0], outcome["sent"]) for outcome in json.loads(done.stdout)] == [
        ("json", 1),
        ("mailto", 1),
    ]
    assert web.titles() == ["missing_appointment: 1000 new"]
    (posted,) = web.received
    assert posted["type"] == "failure"
    assert "- call 1 <b> ***78\n" in posted["message"]
    (letter,) = mailbox.received
    assert "missing_appointment: 1000 new" in letter["Subject"]
    assert letter.get_content_type() == "text/plain"
    text = str(letter.get_payload(decode=True), "utf-8")  # type: ignore[arg-type]  # of a plain one it is bytes
    assert "- call 1 <b> ***78\r\n" in text
    assert "call 5" in text
    assert "4915112345" not in text + posted["message"]

    again = notify(database, f"json://{web.host} {address}")
    assert (again.exit_code, len(web.received), len(mailbox.received)) == (0, 1, 1)


def test_warnings_wait_for_the_digest(database: str, web: WebSink) -> None:
    tell(database, "missing_direction", "warning")
    assert notify(database, f"json://{web.host}").exit_code == 0
    assert web.received == []
    execute(database, "update guard.notifications set created_at = now() - interval '4 hours'")
    assert notify(database, f"json://{web.host}").exit_code == 0
    assert [(message["title"], message["type"]) for message in web.received] == [("Digest: 1 new of 1 kind", "warning")]


def test_what_a_channel_refuses_is_tried_again(database: str, web: WebSink) -> None:
    web.status = 500
    tell(database)
    failed = notify(database, f"json://{web.host}")
    assert failed.exit_code == 1
    assert "error=500" in failed.stdout
    assert notify(database, f"json://{web.host}").exit_code == 0  # not due yet
    assert len(web.received) == 1

    web.status = 200
    make_due(database)
    assert notify(database, f"json://{web.host}").exit_code == 0
    assert query(database, "select status, attempts, last_error from guard.deliveries") == [("sent", 2, None)]
    assert len(web.received) == 2


def test_an_address_is_never_told(database: str, web: WebSink) -> None:
    address = f"json://alice:s3cretpass@{web.host}/T0ken/path?-key=qu%65rysecret&cto=1"
    refused = f"json://alice:s3cretpass@127.0.0.1:{port_for.select_random()}/T0ken/path?-key=qu%65rysecret&cto=1"
    web.status = 500
    tell(database)
    outputs = [
        notify(database, f"{address},{refused}", *arguments)
        for arguments in ((), ("--json",), ("--list",), ("--list", "--json"))
    ]
    outputs += [notify(database, "nosuch://alice:s3cretpass@127.0.0.1/T0ken"), notify(database, "s3cretpass")]
    outputs.append(invoke(database, "--debug", "notify", GUARD_CHANNELS="slack://alice:s3cretpass/T0ken"))
    told = "".join(f"{done.output}{done.exception!r}" for done in outputs)
    assert "Connection error" in told
    stored = str(
        [query(database, f"select t::text from guard.{t} as t") for t in ("messages", "deliveries", "audit_log")]
    )
    for secret in ("alice", "s3cretpass", "127.0.0.1", "T0ken", "querysecret", "qu%65ry"):
        assert secret.lower() not in (told + stored).lower()


def test_a_channel_that_hangs_keeps_nobody_waiting(database: str, web: WebSink) -> None:
    execute(database, "select guard.set_setting('delivery_timeout_seconds', '1')")
    for kind in ("one", "two", "three"):
        tell(database, kind)
    with web_sink() as stuck:
        stuck.status = None
        process = start(database, f"json://{stuck.host} json://{web.host}")
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "took longer than 1 s" in output
        assert len(stuck.received) == 1
    assert len(web.received) == 3
    assert query(database, "select status, attempts, count(*) from guard.deliveries group by 1, 2 order by 1, 2") == [
        ("pending", 0, 2),
        ("pending", 1, 1),
        ("sent", 1, 3),
    ]


def test_two_senders_at_once_send_nothing_twice(database: str, web: WebSink) -> None:
    kinds = {f"kind_{number}" for number in range(20)}
    for kind in kinds:
        tell(database, kind)
    senders = [start(database, f"json://{web.host}") for _ in range(2)]
    for sender in senders:
        _, errors = sender.communicate(timeout=60)
        assert sender.returncode == 0, errors
    assert sorted(web.titles()) == sorted(f"{kind}: 1 new" for kind in kinds)


def test_what_a_killed_sender_held_is_sent_by_the_next(database: str, web: WebSink) -> None:
    web.status = None
    tell(database)
    sender = start(database, f"json://{web.host}")
    for _ in range(1500):
        if web.received:
            break
        time.sleep(0.02)
    sender.kill()
    sender.communicate()
    assert query(database, "select status, attempts from guard.deliveries") == [("pending", 1)]

    web.status = 200
    assert notify(database, f"json://{web.host}").exit_code == 0
    assert len(web.received) == 1  # the dead sender's lease still stands
    make_due(database)
    assert notify(database, f"json://{web.host}").exit_code == 0
    assert web.titles() == ["job_failed: 1 new"] * 2
    assert query(database, "select status, attempts from guard.deliveries") == [("sent", 2)]


def test_follow_goes_on_when_the_database_comes_back(database: str, web: WebSink, tmp_path: Path) -> None:
    server, _, name = database.rpartition("/")
    log = tmp_path / "stderr"
    with log.open("w") as errors:
        sender = start(database, f"json://{web.host}", "--follow", "--every", "0.1", stderr=errors)
        try:
            tell(database, "before")
            wait_until(database, "select count(*) = 1 from guard.deliveries where status = 'sent'", sender)
            execute(f"{server}/postgres", f"alter database {name} allow_connections false")
            for _ in range(1500):
                if "Trying again" in log.read_text():
                    break
                time.sleep(0.02)
            execute(f"{server}/postgres", f"alter database {name} allow_connections true")
            tell(database, "after")
            wait_until(database, "select count(*) = 2 from guard.deliveries where status = 'sent'", sender)
            sender.send_signal(signal.SIGINT)
            sender.communicate(timeout=30)
        finally:
            sender.kill()
    assert sender.returncode == 0
    assert web.titles() == ["before: 1 new", "after: 1 new"]


def test_given_up_deliveries_are_findings_until_somebody_decides(database: str, web: WebSink) -> None:
    execute(database, "select guard.set_setting('max_delivery_attempts', '1')")
    web.status = 500
    for kind in ("one", "two"):
        tell(database, kind)
        assert notify(database, f"json://{web.host}").exit_code == 1
    assert query(database, "select status from guard.deliveries") == [("dead",), ("dead",)]
    verified = invoke(database, "verify", "--json")
    assert verified.exit_code == 2
    (finding,) = json.loads(verified.stdout)["findings"]
    assert finding["kind"] == "dead_delivery"
    assert ": 2 given up, the last one: Failed to send JSON POST" in finding["object"]

    listed = json.loads(notify(database, "", "--list", "--json").stdout)["deliveries"]
    assert [(delivery["title"], delivery["status"]) for delivery in listed] == [
        ("one: 1 new", "dead"),
        ("two: 1 new", "dead"),
    ]
    assert notify(database, "", "--discard", str(listed[0]["id"])).exit_code == 0
    assert notify(database, "", "--requeue", "all").stdout == "1 delivery is tried again with the next run.\n"
    web.status = 200
    assert notify(database, f"json://{web.host}").exit_code == 0
    assert web.titles() == ["one: 1 new", "two: 1 new", "two: 1 new"]
    assert invoke(database, "verify").exit_code == 0


def test_verify_notes_what_nobody_delivers(database: str) -> None:
    tell(database)
    execute(database, "update guard.notifications set created_at = now() - interval '1 hour'")
    verified = invoke(database, "verify", "--json")
    assert verified.exit_code == 0
    assert any("The outbox holds 1 undelivered" in note for note in json.loads(verified.stdout)["notes"])


@pytest.mark.parametrize(
    ("channels", "told"),
    [
        ("", "No channel is configured; 1 event waits for one. Set GUARD_CHANNELS"),
        (" , \n", "No channel is configured"),
        ("json://", "apprise cannot read the address of the channel json:"),
        ("nosuch://x", "apprise cannot read the address of the channel nosuch:"),
        ("example.com", "A channel is no address"),
    ],
)
def test_without_a_channel_nothing_is_lost(channels: str, told: str, database: str) -> None:
    tell(database)
    refused = notify(database, channels)
    assert refused.exit_code == 1
    assert told in refused.stderr
    assert len(refused.output.splitlines()) == 1
    assert query(database, "select count(*) from guard.notifications where message_id is null") == [(1,)]


def test_channels_from_a_file(database: str, web: WebSink, tmp_path: Path) -> None:
    file = tmp_path / "channels"
    file.write_text(f"# who is told\n\njson://{web.host}/a,b\njson://{web.host}/c\njson://{web.host}/c\n")
    tell(database)
    done = invoke(database, "notify", "--json", GUARD_CHANNELS_FILE=str(file))
    assert [outcome["sent"] for outcome in json.loads(done.stdout)] == [1, 1]
    missing = invoke(database, "notify", GUARD_CHANNELS_FILE=str(tmp_path / "missing"))
    assert missing.exit_code == 1
    assert "GUARD_CHANNELS_FILE cannot be read" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--follow", "--list"), "Give one of"),
        (("--requeue", "x"), "give the id of a delivery, or all"),
        (("--requeue", "99"), "ZG602"),
        (("--discard", "99"), "ZG602"),
        (("--every", "0"), "0.1<=x<=3600"),
    ],
)
def test_bad_options(arguments: tuple[str, ...], told: str, database: str) -> None:
    refused = notify(database, "json://127.0.0.1", *arguments)
    assert refused.exit_code == 1
    assert told in refused.stderr

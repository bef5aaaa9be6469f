"""Delivers the outbox through apprise. What is due, in which words, and what follows a failure is decided in SQL.

The address of a channel holds its password: it stays in this process. Everyone else, the database included, knows the
channel by a label, and what a channel says of a failure is kept only after every part of its address was struck out.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import apprise
from psycopg.rows import dict_row

from guard import deadline
from guard.database import Connection
from guard.errors import ChannelError, NoChannelError, OperationTimeoutError

#: Where the addresses are read from.
ADDRESSES, ADDRESSES_FILE = "GUARD_CHANNELS", "GUARD_CHANNELS_FILE"

_TYPES = {
    "critical": apprise.NotifyType.FAILURE,
    "warning": apprise.NotifyType.WARNING,
    "info": apprise.NotifyType.INFO,
}

Row = dict[str, Any]


class Channel:
    """One address that messages go to. Raises ChannelError for an address that apprise does not understand."""

    def __init__(self, address: str) -> None:
        scheme = address.partition("://")[0].lower()
        self._address = address
        #: What everyone else knows it by: `slack:0a1b2c3d`.
        self.label = f"{scheme}:{hashlib.sha256(address.encode()).hexdigest()[:8]}"
        with _overheard():
            service = apprise.Apprise.instantiate(
                address, asset=apprise.AppriseAsset(app_id="Guard", storage_mode="memory")
            )
        if service is None:
            raise ChannelError(f"apprise cannot read the address of the channel {self.label}.")
        self._service = service

    def send(self, severity: str, title: str, body: str, seconds: float) -> str | None:
        """Send a message, waiting no longer than `seconds`. Returns why it failed, None if the channel took it."""
        message = {
            "title": title,
            "body": body,
            "notify_type": _TYPES[severity],
            "body_format": apprise.NotifyFormat.TEXT,
        }
        if self._service.overflow_mode is apprise.OverflowMode.UPSTREAM:  # what is too long comes in several pieces
            message["overflow"] = apprise.OverflowMode.SPLIT
        with _overheard() as said:
            try:
                if deadline.run(self._service.notify, (), message, seconds):
                    return None
            except OperationTimeoutError:
                said.append(f"The channel took longer than {seconds:g} s.")
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
            return self._redacted(" ".join(said) or "The channel did not take it.")

    def _redacted(self, text: str) -> str:
        """The text without any part of the address but its scheme, as it is written there and decoded."""
        address = self._address.partition("://")[2]
        raw = re.split(r"[\s/?#&=@:,;+]+", re.sub(r"([?&])[^=&]*=", r"\1", address))
        parts = {part for piece in raw for part in (piece, unquote(piece)) if len(part) > 2}
        for part in sorted(parts, key=len, reverse=True):
            text = re.sub(re.escape(part), "***", text, flags=re.IGNORECASE)
        return text


class _Ear(logging.Handler):
    """Hears what apprise warns of, which is the only place where it says why a message failed."""

    def emit(self, record: logging.LogRecord) -> None:
        if (said := _said.get()) is not None:
            said.append(record.getMessage())


_said: ContextVar[list[str] | None] = ContextVar("guard_overheard", default=None)

_log = logging.getLogger("apprise")
_log.addHandler(_Ear(logging.WARNING))
_log.propagate = False  # it names recipients, and at lower levels addresses


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What apprise has to say in this block."""
    said: list[str] = []
    token = _said.set(said)
    try:
        yield said
    finally:
        _said.reset(token)


def channels(environment: Mapping[str, str]) -> list[Channel]:
    """The channels that GUARD_CHANNELS and the file GUARD_CHANNELS_FILE name; in the file `#` starts a comment.

    Raises NoChannelError where there is none, ChannelError for one that cannot be used.
    """
    text = environment.get(ADDRESSES, "")
    if path := environment.get(ADDRESSES_FILE):
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ChannelError(f"{ADDRESSES_FILE} cannot be read: {path}: {reason}.") from None
        text = "\n".join([text, *(line for line in lines if not line.lstrip().startswith("#"))])
    # a comma inside an address stays
    addresses = [a for a in re.split(r"[\s,]+(?=[A-Za-z][A-Za-z0-9+.-]*://)", text.strip(" \t\r\n,")) if a]
    if not addresses:
        raise NoChannelError
    if any(re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,39}://", address) is None for address in addresses):
        raise ChannelError("A channel is no address: it does not begin with a scheme, as in mailtos://.")
    return [Channel(address) for address in dict.fromkeys(addresses)]


@dataclass
class Outcome:
    """What became of one channel's deliveries in one run; `failed` counts those that are tried again, too."""

    channel: str
    sent: int = 0
    failed: int = 0
    error: str | None = None


def deliver(connect: Callable[[], Connection], to: Sequence[Channel]) -> list[Outcome]:
    """Make messages of what is due and send all that is due, each channel by itself: none waits for another."""
    with connect() as connection:
        connection.execute("select guard.bundle_notifications(%s)", ([channel.label for channel in to],))
    with ThreadPoolExecutor(max_workers=len(to)) as pool:
        return list(pool.map(lambda channel: _drain(connect, channel), to))


def _drain(connect: Callable[[], Connection], channel: Channel) -> Outcome:
    """Send until nothing is due. A channel that failed is left alone for the rest of the run."""
    outcome = Outcome(channel.label)
    with connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
        while outcome.error is None:
            claimed = cursor.execute("select * from guard.claim_delivery(%s)", (channel.label,)).fetchone()
            if claimed is None:
                break
            outcome.error = channel.send(
                claimed["severity"], claimed["title"], claimed["body"], float(claimed["timeout_seconds"])
            )
            cursor.execute(
                "select guard.settle_delivery(%s, %s, %s)", (claimed["id"], claimed["attempt"], outcome.error)
            )
            if outcome.error is None:
                outcome.sent += 1
            else:
                outcome.failed += 1
    return outcome


def undelivered(connection: Connection) -> list[Row]:
    """Every delivery that waits or was given up, the oldest first."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            """
            select
                d.id, d.status, d.channel, m.severity, m.title, d.attempts,
                case when d.status = 'pending' then d.next_attempt_at end as next_attempt_at, d.last_error, d.created_at
            from guard.deliveries as d
            inner join guard.messages as m on d.message_id = m.id
            where d.status in ('pending', 'dead')
            order by d.id
            """
        ).fetchall()


def waiting(connection: Connection) -> int:
    """How many events stand in the outbox that no message tells of yet."""
    row = connection.execute("select count(*) from guard.notifications where message_id is null").fetchone()
    return int(row[0]) if row else 0

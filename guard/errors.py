"""Every error guard itself raises, under one root.

An error is one line that says what is wrong and a `fix` that says what to do. The docstring of a class is its
default message. SQLSTATEs of guard's own class `ZG` are mapped to exceptions in `from_database` and nowhere else.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg


class GuardError(Exception):
    """Guard could not do what was asked."""

    default_fix = "Run guard --debug COMMAND to see where it failed."

    def __init__(self, message: str | None = None, *, fix: str | None = None) -> None:
        self.message = message or inspect.cleandoc(self.__class__.__doc__ or "")
        self.fix = fix or self.default_fix
        super().__init__(self.message)


class NoDatabaseError(GuardError):
    """No database is named and the embedded server is not running."""

    default_fix = "Start one with `guard up`, or name one with --dsn, GUARD_DSN or libpq's PG* variables."


class ConnectionFailedError(GuardError):
    """The database cannot be reached."""

    default_fix = "Check the address, the credentials and that the server runs."


class ServerError(GuardError):
    """The embedded server could not be run."""


class NotInstalledError(GuardError):
    """Guard is not installed in this database."""

    default_fix = "Run guard apply."


class UnsuitableDatabaseError(GuardError):
    """The database cannot be adopted as it is; nothing was changed."""


class BusyError(GuardError):
    """Another guard command is changing this database."""

    default_fix = "Wait for it to finish, then run the command again."


class LockTimeoutError(GuardError):
    """A lock was not granted in time; what was done so far is kept."""

    default_fix = "Run the same command again when the blocking query has ended: it resumes where it stopped."


class NoChannelError(GuardError):
    """No channel is configured."""

    default_fix = "Set GUARD_CHANNELS to addresses as apprise writes them, or GUARD_CHANNELS_FILE to a file of them."


class ChannelError(GuardError):
    """A channel cannot be used."""

    default_fix = "Correct GUARD_CHANNELS or the file GUARD_CHANNELS_FILE; nothing is lost meanwhile."


class SignatureError(GuardError):
    """The webhook is not from whom it says."""

    default_fix = "Drop it, and check that sender and receiver have the same secret."


class RefusedError(GuardError):
    """A rule at `enforce` refused the write."""


class CircuitOpenError(GuardError):
    """The circuit is open: the call was not made. `retry_after` says in how many seconds to ask again."""

    default_fix = "Wait for retry_after seconds, or see `guard breaker show`."

    def __init__(self, key: str, state: str, retry_after: float) -> None:
        # made for each call that is refused: its words are put together when somebody reads them
        Exception.__init__(self, key, state, retry_after)
        self.key = key
        self.state = state
        self.retry_after = retry_after
        self.fix = self.default_fix

    @property
    def message(self) -> str:  # type: ignore[override]  # an attribute elsewhere
        return f"The circuit {self.key} is {self.state}: try again in {self.retry_after:.1f} s."

    def __str__(self) -> str:
        return self.message


class OperationTimeoutError(GuardError, TimeoutError):
    """The operation took longer than it was given."""

    default_fix = "Look whether it took effect before doing it again."


#: What is said of a table, a function or the schema of guard's that is not there.
_MISSING = {"42P01", "3F000", "42883"}
_OF_GUARD = re.compile(r'["\s]guard["\.]')

#: What to do, where the server's own hint is none or would do harm.
_FIXES = {
    "2BP01": "Drop what depends on it, or let it do without, then run the same command again.",
    "42501": "Connect as a role that has this right: one that is granted guard_operator, or, for what changes "
    "the schema, the one that guard apply was run as.",
    "55P03": LockTimeoutError.default_fix,
    "ZG001": "guard settings list shows them.",
    "ZG010": "guard rules list shows them.",
    "ZG501": "guard jobs list shows them.",
}
#: A statement in a hint of guard's, which its command says shorter.
_SET_RULE = re.compile(r"select guard\.set_rule\('(\w+)', '(\w+)'\)")


def from_database(error: psycopg.Error, during: str | None = None) -> GuardError:
    """Turn a database error into one line that carries no row data; `during` names the step that met it.

    Only the primary message and the hint are kept: the DETAIL of a failed CHECK prints the whole row, phone numbers
    included. What depends on an object (2BP01) is named in the DETAIL, and nothing else is.
    """
    prefix = f"{during}: " if during else ""
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        reason = str(error).partition("\n")[0]
        return ConnectionFailedError(prefix + reason if reason else None)
    diagnostics = error.diag
    message = diagnostics.message_primary or str(error).partition("\n")[0]
    # with a context it comes from within a function, and so guard is there
    if error.sqlstate in _MISSING and not during and not diagnostics.context and _OF_GUARD.search(message):
        return NotInstalledError()
    if error.sqlstate == "2BP01" and diagnostics.message_detail:
        message = f"{message} ({diagnostics.message_detail})"
    kind = RefusedError if (error.sqlstate or "").startswith("ZG1") else GuardError
    fix = _FIXES.get(error.sqlstate or "") or _SET_RULE.sub(
        r"guard rules set \1 --mode \2", diagnostics.message_hint or ""
    )
    return kind(f"{prefix}{message} [{error.sqlstate}]", fix=fix)


@contextmanager
def named(step: str) -> Iterator[None]:
    """Say which step a database error came from."""
    try:
        yield
    except psycopg.Error as error:
        raise from_database(error, step) from error

"""Signatures of webhooks: over the raw body, in constant time, within the replay window."""

from __future__ import annotations

import hmac
from hashlib import sha256

import pytest

from guard.errors import SignatureError
from guard.webhooks import verify_calcom, verify_retell

BODY = b'{"event": "call_ended"}'
SECRET = "s3cret"  # noqa: S105  # a test's
NOW = 1_767_225_600.0


def retell(body: bytes = BODY, secret: str = SECRET, at: float = NOW) -> str:
    milliseconds = str(int(at * 1000))
    digest = hmac.new(secret.encode(), body + milliseconds.encode(), sha256).hexdigest()
    return f"v={milliseconds},d={digest}"


def calcom(body: bytes = BODY, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, sha256).hexdigest()


def test_a_good_signature_passes() -> None:
    verify_retell(BODY, retell(), SECRET, now=NOW)
    verify_retell(BODY, retell(at=NOW - 299), SECRET, now=NOW)
    verify_retell(BODY, retell(at=NOW - 599), SECRET, replay_window=600, now=NOW)
    verify_calcom(BODY, calcom(), SECRET)


def test_the_replay_window_can_be_narrower() -> None:
    with pytest.raises(SignatureError, match="more than 60 s from now"):
        verify_retell(BODY, retell(at=NOW - 61), SECRET, replay_window=60, now=NOW)


@pytest.mark.parametrize(
    "signature",
    [
        None,
        "",
        "v=1,d=2",
        retell(b"{}"),
        retell(secret="other"),  # noqa: S106  # a test's
        retell(at=NOW - 301),
        retell(at=NOW + 301),
        retell().replace("v=", "v=0"),
        retell() + "\n",
    ],
)
def test_a_bad_signature_of_the_phone_agent_is_refused(signature: str | None) -> None:
    with pytest.raises(SignatureError):
        verify_retell(BODY, signature, SECRET, now=NOW)


@pytest.mark.parametrize(
    "signature",
    [None, "", "no-secret-provided", "é" * 64, calcom(b"{}"), calcom(secret="other")],  # noqa: S106  # a test's
)
def test_a_bad_signature_of_the_calendar_is_refused(signature: str | None) -> None:
    with pytest.raises(SignatureError):
        verify_calcom(BODY, signature, SECRET)


def test_no_secret_is_refused() -> None:
    with pytest.raises(SignatureError):
        verify_retell(BODY, retell(secret=""), "", now=NOW)
    with pytest.raises(SignatureError):
        verify_calcom(BODY, calcom(secret=""), "")

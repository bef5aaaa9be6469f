"""Is this webhook from whom it says? Check the signature over the raw body, before the body is parsed.

What the events then do is SQL: `guard.handle_call_ended(jsonb)` and `guard.handle_booking_event(jsonb)`.
"""

from __future__ import annotations

import hmac
import re
import time
from hashlib import sha256

from guard.errors import SignatureError

_RETELL = re.compile(r"v=(\d{1,16}),d=([0-9a-f]{64})")


def verify_retell(
    body: bytes, signature: str | None, secret: str, *, replay_window: float = 300.0, now: float | None = None
) -> None:
    """Check the header `x-retell-signature: v=MILLISECONDS,d=HEX` of a webhook of the phone agent.

    `body` is the raw body; `replay_window` is how far its timestamp may be from now, in seconds, before or after
    (`settings.replay_window_seconds`); `now` is the time in seconds since 1970, this machine's unless given.
    Raises SignatureError if it is missing, malformed, of another body or secret, or outside the replay window.
    """
    match = _RETELL.fullmatch(signature or "")
    if match is None:
        raise SignatureError("The webhook carries no signature of the form v=MILLISECONDS,d=HEX.")
    milliseconds, digest = match.groups()
    if abs((time.time() if now is None else now) - int(milliseconds) / 1000) > replay_window:
        raise SignatureError(f"The webhook was signed more than {replay_window:g} s from now.")
    _compare(_hmac(secret, body + milliseconds.encode()), digest)


def verify_calcom(body: bytes, signature: str | None, secret: str) -> None:
    """Check the header `X-Cal-Signature-256: HEX` of a webhook of the calendar, over the raw body.

    Raises SignatureError if it is missing or of another body or secret, and for the literal `no-secret-provided` that
    the calendar sends where no secret is set.
    """
    if not signature or signature == "no-secret-provided":
        raise SignatureError("The webhook is not signed: no secret is set in the calendar.")
    _compare(_hmac(secret, body), signature.lower())


def _hmac(secret: str, message: bytes) -> str:
    if not secret:
        raise SignatureError("No secret is given to check the webhook with.")
    return hmac.new(secret.encode(), message, sha256).hexdigest()


def _compare(expected: str, given: str) -> None:
    if not hmac.compare_digest(expected.encode(), given.encode()):
        raise SignatureError("The signature does not match the body.")

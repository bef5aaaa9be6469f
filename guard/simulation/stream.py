"""What is played: calls, what each of them is, and what goes wrong with it. The seed alone decides."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

COMPANIES = 3
STAFF = 12
CUSTOMERS = 300
#: Of the calls that have no fault, how many end in a booking, fail to book, and know their customer.
BOOKED = 0.6
FAILED = 0.03
KNOWN_CUSTOMER = 0.5
#: Of the bookings that have no fault, how many are first heard of by the calendar's webhook.
BY_WEBHOOK = 0.25
_FIRST_SLOT = datetime(2030, 1, 1, 8, tzinfo=UTC)

#: What goes wrong, and which rules it breaks where nobody repairs it.
FAULTS: dict[str, tuple[str, ...]] = {
    "phantom booking": ("missing_appointment",),
    "appointment deleted, flags left": ("missing_appointment",),
    "outcome booked, flag not set": ("session_outcome_mismatch", "inconsistent_link_status"),
    "flag set, outcome abandoned": ("appointment_made_mismatch",),
    "link status without appointment": ("inconsistent_link_status",),
    "direction left out": ("missing_direction",),
    "customer half linked": ("inconsistent_customer_link",),
    "appointment without its call": ("orphaned_appointment", "missing_appointment"),
    "appointment of an unknown booking": ("orphaned_appointment",),
    "appointment of another company": ("tenant_mismatch",),
    "webhook delivered twice": ("duplicate_booking",),
    "booking written twice": ("duplicate_booking",),
    "staff member booked twice": ("overlapping_appointment",),
}
#: Faults of calls that book nothing; the others need a booking, or do not care.
_WITHOUT_BOOKING = ("link status without appointment", "appointment of an unknown booking")


@dataclass(frozen=True)
class Stream:
    """What is played. `fault_rate` is the share of calls with a fault, 0 to 1."""

    calls: int
    fault_rate: float
    seed: int
    sessions: int


@dataclass(frozen=True)
class Call:
    """A call of the plan; `fault` is a key of FAULTS. Each call has an hour of the calendar to itself."""

    number: int
    company: int
    direction: str
    customer: int | None
    outcome: str
    by_webhook: bool
    fault: str | None

    @property
    def books(self) -> bool:
        return self.outcome == "appointment_booked"

    @property
    def staff(self) -> int:
        """A staff member of the call's company: ids go around the companies."""
        return self.company + COMPANIES * (self.number % (STAFF // COMPANIES))

    @property
    def slot(self) -> datetime:
        return _FIRST_SLOT + timedelta(hours=self.number)


def plan(stream: Stream) -> list[Call]:
    """The calls, decided by the seed alone."""
    rng = random.Random(stream.seed)  # noqa: S311  # a plan that can be repeated, no secret
    calls = []
    for number in range(stream.calls):
        company = rng.randint(1, COMPANIES)
        fault = rng.choice(list(FAULTS)) if rng.random() < stream.fault_rate else None
        chance = rng.random()
        known = rng.random() < KNOWN_CUSTOMER or fault == "customer half linked"
        customer = company + COMPANIES * rng.randrange(CUSTOMERS // COMPANIES)
        webhook = rng.random() < BY_WEBHOOK
        if fault is not None:
            outcome = "abandoned" if fault in _WITHOUT_BOOKING else "appointment_booked"
        elif chance < BOOKED:
            outcome = "appointment_booked"
        else:
            outcome = "creation_failed" if chance < BOOKED + FAILED else "abandoned"
        calls.append(
            Call(
                number=number,
                company=company,
                direction=rng.choice(["inbound", "inbound", "inbound", "outbound"]),
                customer=customer if known else None,
                outcome=outcome,
                by_webhook=fault == "webhook delivered twice" or (fault is None and webhook),
                fault=fault,
            )
        )
    return calls


def injected(calls: Iterable[Call]) -> dict[str, int]:
    """How many calls have each fault, in the order of FAULTS."""
    counted = Counter(call.fault for call in calls)
    return {fault: counted[fault] for fault in FAULTS}

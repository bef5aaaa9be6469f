"""A stream of calls and bookings with faults in it, played in a scratch database: what would guard change?

`plan` decides by the seed alone what each call is and what goes wrong with it. `run` plays the plan once for each mode,
several sessions at once, in a database made for it and dropped afterwards, and measures what stands at the end with the
rules' own views. The application is the same in every mode, but for one thing: where guard is, it handles the webhooks.
"""

from __future__ import annotations

import random
import secrets
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import psycopg
from psycopg import conninfo, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from guard import audit, constraints, database, install, reconcile, rules
from guard.database import Connection
from guard.errors import GuardError
from guard.watch import Watch

MODES = ("off", "observe", "correct", "enforce")

COMPANIES = 3
STAFF = 12
CUSTOMERS = 300
#: Of the calls that have no fault, how many end in a booking, fail to book, and know their customer.
BOOKED = 0.6
FAILED = 0.03
KNOWN_CUSTOMER = 0.5
#: Of the bookings that have no fault, how many are first heard of by the calendar's webhook.
BY_WEBHOOK = 0.25
#: Several modes are played in turns, part by part.
PARTS = 10
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
_BROKEN = {rule for broken in FAULTS.values() for rule in broken}
#: Faults of calls that book nothing; the others need a booking, or do not care.
_WITHOUT_BOOKING = ("link status without appointment", "appointment of an unknown booking")

#: What installing guard makes beside the database.
ROLES = ["guard_owner", "guard_app", "guard_operator", "guard_reader", "guard_monitor"]

#: Called with what is going on, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


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


class RuleResult(TypedDict):
    """What became of one rule: `violations` stand at the end, `queued` is what waits for a person."""

    rule: str
    severity: str
    violations: int
    repaired: int
    refused: int
    queued: int


class Throughput(TypedDict):
    """A run's rate as a share of the first run's, and the quartiles of that share over the parts."""

    ratio: float
    low: float
    high: float


class Result(TypedDict):
    """One run. Latencies, in seconds, are null where nothing was found; throughput is of the first run."""

    guard: str
    appointments: int
    consistency_rate_pct: float
    rules: list[RuleResult]
    violations: int
    repaired: int
    refused: int
    queued: int
    webhooks_recognised: int
    detected: int
    detection_mean_seconds: float | None
    detection_p95_seconds: float | None
    calls_per_second: float
    throughput: Throughput | None
    kpis: list[dict[str, Any]]


class Simulation(TypedDict):
    """`faults`: how many calls have each."""

    faults: dict[str, int]
    runs: list[Result]


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


_INSERT_CALL = """
    insert into public.calls (company_id, retell_call_id, direction, status)
    values (%(company)s, %(retell)s, %(direction)s, 'ongoing')
    returning id
"""
_LINK_CUSTOMER = """
    update public.calls
    set customer_id = %(customer)s, customer_link_status = 'linked', customer_link_method = %(method)s,
        customer_link_confidence = %(confidence)s, customer_linked_at = now(), updated_at = now()
    where id = %(call)s
"""
_REMEMBER_BOOKING = "update public.calls set booking_id = %(booking)s, updated_at = now() where id = %(call)s"
_INSERT_APPOINTMENT = """
    insert into public.appointments (
        company_id, call_id, staff_id, calcom_v2_booking_id, source, starts_at, ends_at
    )
    values (
        %(company)s, %(call)s, %(staff)s, %(booking)s, %(source)s, %(starts)s,
        %(starts)s::timestamptz + interval '30 minutes'
    )
    returning id
"""
_DELETE_APPOINTMENT = "delete from public.appointments where call_id = %(call)s"
_END_CALL = """
    update public.calls
    set status = 'ended', session_outcome = %(outcome)s, appointment_made = %(made)s,
        appointment_link_status = %(link)s,
        appointment_linked_at = case when %(made)s then coalesce(appointment_linked_at, now()) end, updated_at = now()
    where id = %(call)s
"""
_HANDLE_WEBHOOK = "select action from guard.handle_booking_event(%s)"
_BOOKED = {"outcome": "appointment_booked", "made": True, "link": "linked"}

Values = dict[str, Any]


class Application:
    """One session of the application. Each write is a transaction of its own, so that what comes between is seen.

    A write with a fault that is refused is done again without it, or, where the fault is all there is to it, given up.
    """

    def __init__(self, connection: Connection, seed: int, guarded: bool) -> None:
        self._connection = connection
        self._seed = seed
        self._guarded = guarded
        self.refused: Counter[str] = Counter()
        self.recognised = 0

    def play(self, call: Call) -> None:
        fault = call.fault
        call_id = self._write(
            _INSERT_CALL,
            {"company": call.company, "retell": f"simulated-{call.number}", "direction": call.direction},
            {"direction": None} if fault == "direction left out" else None,
        )
        if call.customer is not None:
            self._write(
                _LINK_CUSTOMER,
                {"call": call_id, "customer": call.customer, "method": "phone_match", "confidence": 100},
                {"method": None, "confidence": None} if fault == "customer half linked" else None,
            )
        appointment = {
            "company": call.company,
            "call": call_id,
            "staff": call.staff,
            "booking": f"booking-{self._seed}-{call.number}",
            "source": "retell_webhook",
            "starts": call.slot,
        }
        if call.books:
            self._book(call, appointment)
        else:
            if fault == "appointment of an unknown booking":
                self._write(_INSERT_APPOINTMENT, None, {**appointment, "call": None})
            self._write(
                _END_CALL,
                {"call": call_id, "outcome": call.outcome, "made": False, "link": None},
                {"link": "linked"} if fault == "link status without appointment" else None,
            )

    def _book(self, call: Call, appointment: Values) -> None:
        fault = call.fault
        self._write(_REMEMBER_BOOKING, appointment)
        ended = _BOOKED | {"call": appointment["call"]}
        if fault == "phantom booking":
            # the worker died before it wrote the appointment, and the call was told that all is well
            failed = {"outcome": "creation_failed", "made": False, "link": "creation_failed"}
            self._write(_END_CALL, ended | failed, _BOOKED)
            return
        if call.by_webhook:
            self._hear_of_booking(appointment, times=2 if fault == "webhook delivered twice" else 1)
        else:
            self._write_appointment(call, appointment)
        if fault == "booking written twice":
            self._write(_INSERT_APPOINTMENT, None, {**appointment, "staff": None})
        wrong_flags: dict[str, Values] = {
            "outcome booked, flag not set": {"made": False},
            "flag set, outcome abandoned": {"outcome": "abandoned"},
        }
        self._write(_END_CALL, ended, wrong_flags.get(fault or ""))
        if fault == "appointment deleted, flags left":
            self._write(_DELETE_APPOINTMENT, appointment)

    def _write_appointment(self, call: Call, appointment: Values) -> None:
        wrong: Values | None = None
        if call.fault == "appointment without its call":
            wrong = {"call": None}
        elif call.fault == "appointment of another company":
            wrong = {"company": call.company % COMPANIES + 1}
        elif call.fault == "staff member booked twice":
            # the front desk took the slot, which the agent was told is free
            self._write(_INSERT_APPOINTMENT, {**appointment, "call": None, "booking": None, "source": "front_desk"})
            wrong = {"starts": call.slot}
            appointment = {**appointment, "starts": call.slot + timedelta(minutes=30)}
        self._write(_INSERT_APPOINTMENT, appointment, wrong)

    def _hear_of_booking(self, appointment: Values, times: int) -> None:
        """The calendar's webhook. The application finds no appointment each time; guard knows what it has handled."""
        event = {
            "triggerEvent": "BOOKING_CREATED",
            "createdAt": datetime.now(UTC).isoformat(),
            "payload": {
                "uid": appointment["booking"],
                "startTime": appointment["starts"].isoformat(),
                "endTime": (appointment["starts"] + timedelta(minutes=30)).isoformat(),
                "metadata": {"call_id": appointment["call"]},
            },
        }
        for _ in range(times):
            if self._guarded:
                row = self._connection.execute(_HANDLE_WEBHOOK, (Jsonb(event),)).fetchone()
                self.recognised += row == ("duplicate",)
            else:
                self._write(_INSERT_APPOINTMENT, {**appointment, "staff": None})

    def _write(self, statement: str, values: Values | None, fault: Values | None = None) -> int | None:
        """Write `values` as `fault` changes them; if that is refused, as they are, or not at all. Returns the id."""
        if fault is not None:
            try:
                return self._execute(statement, (values or {}) | fault)
            except psycopg.Error as error:
                rule = (error.diag.constraint_name or "").removeprefix("guard_")
                if rule not in _BROKEN:
                    raise
                self.refused[rule] += 1
        return None if values is None else self._execute(statement, values)

    def _execute(self, statement: str, values: Values) -> int | None:
        cursor = self._connection.execute(statement.encode(), values)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def run(dsn: str, stream: Stream, modes: Iterable[str], progress: Progress) -> Simulation:
    """Play the stream once for each mode, each in a fresh database on the server that `dsn` names, part by part.

    To be called in the main thread, whose signals it handles. Raises GuardError where no database can be made there,
    or guard cannot be installed in it.
    """
    calls = plan(stream)
    with _scratch(dsn) as scratch, ExitStack() as stack:
        template = scratch.create()
        with install.exclusive(template) as session:
            install.apply(session, lambda _what, done, total: progress("installing guard", done, total))
            _seed(session.worker)
        runs = []
        for mode in modes:
            copy = scratch.create(template)
            _set_modes(copy, mode)
            runs.append(stack.enter_context(_opened(copy, stream, mode)))

        def on_progress() -> None:
            progress("playing calls", sum(run.played for run in runs), len(calls) * len(runs))

        for number, part in enumerate(_parts(calls)):
            # whoever comes first in one part comes last in the next: what else the machine does hits all alike
            for run in runs if number % 2 == 0 else reversed(runs):
                run.play(part, on_progress)
        progress("waiting for the grace to pass", len(calls) * len(runs), len(calls) * len(runs))
        results = [run.finish(None if run is runs[0] else _compare(runs[0], run)) for run in runs]
    return {"faults": injected(calls), "runs": results}


def _parts(calls: list[Call]) -> list[list[Call]]:
    size = -(-len(calls) // PARTS)
    return [calls[begin : begin + size] for begin in range(0, len(calls), size)]


def _compare(before: _Run, after: _Run) -> Throughput:
    ratios = [b / a for a, b in zip(before.rates, after.rates, strict=True)]
    ratio = before.seconds / after.seconds
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratio] * 3
    return {"ratio": ratio, "low": low, "high": high}


class _Scratch:
    """Databases on the user's server, made to be thrown away."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._prefix = f"guard_simulation_{secrets.token_hex(4)}"
        self._names: list[str] = []
        with database.connect(dsn) as connection:
            row = connection.execute(
                """
                select
                    (select r.rolcreatedb or r.rolsuper from pg_catalog.pg_roles as r where r.rolname = current_user),
                    array(select r.rolname::text from pg_catalog.pg_roles as r where r.rolname = any(%s))
                """,
                (ROLES,),
            ).fetchone()
        assert row is not None  # noqa: S101  # a query without FROM returns one row
        may_create, roles = row
        self._missing_roles = [role for role in ROLES if role not in roles]
        if not may_create:
            raise GuardError(
                "A simulation needs a database of its own, and this role may not create one.",
                fix="Connect as a role with CREATEDB and CREATEROLE, or use a server of your own: guard up.",
            )

    def create(self, template: str | None = None) -> str:
        """A new database, empty or a copy of another one; its connection string."""
        name = f"{self._prefix}_{len(self._names)}"
        source = "template0" if template is None else conninfo.conninfo_to_dict(template)["dbname"]
        self._names.append(name)
        with database.connect(self._dsn) as connection:
            connection.execute(
                sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(str(source)))
            )
        return conninfo.make_conninfo(self._dsn, dbname=name)

    def drop(self) -> None:
        """Drop every database, and the roles of guard's that were not there before and that no other database uses."""
        try:
            with database.connect(self._dsn) as connection:
                for name in self._names:
                    connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
                made = connection.execute(
                    "select r.rolname from pg_catalog.pg_roles as r where r.rolname = any(%s)", (self._missing_roles,)
                ).fetchall()
                for (role,) in made:
                    # somebody installed guard meanwhile, and needs it
                    with suppress(psycopg.errors.DependentObjectsStillExist):
                        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))
        except psycopg.Error as error:
            raise GuardError(
                f"The simulation's databases {self._prefix}_* may have been left behind"
                f" ({str(error).partition(chr(10))[0]}).",
                fix="Drop them with dropdb when the server answers again.",
            ) from error


@contextmanager
def _scratch(dsn: str) -> Iterator[_Scratch]:
    """Whatever ends the block, a signal included, its databases are dropped, and a second signal does not stop that."""
    scratch = _Scratch(dsn)
    try:
        yield scratch
    finally:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
        try:
            scratch.drop()
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)


def _seed(connection: Connection) -> None:
    """Companies, and staff and customers that go around them."""
    connection.execute(
        "insert into public.companies (name) select 'company ' || i from generate_series(1, %s) as i", (COMPANIES,)
    )
    connection.execute(
        """
        insert into public.staff (company_id, name)
        select (i - 1) %% %s + 1, 'staff member ' || i from generate_series(1, %s) as i
        """,
        (COMPANIES, STAFF),
    )
    connection.execute(
        """
        insert into public.customers (company_id, name)
        select (i - 1) %% %s + 1, 'customer ' || i from generate_series(1, %s) as i
        """,
        (COMPANIES, CUSTOMERS),
    )


def _set_modes(dsn: str, mode: str) -> None:
    """Move every rule to a mode; a rule that reports a fact cannot be enforced, and stays.

    At off the triggers are disabled and the constraints removed too: nothing of guard's acts on a write.
    """
    with database.connect(dsn) as connection:
        registered = connection.execute("select rule, enforceable from guard.rules order by rule").fetchall()
    for rule, enforceable in registered:
        if enforceable or mode != "enforce":
            rules.move(dsn, rule, mode, 100)
    if mode == "off":
        with install.exclusive(dsn) as session:
            for rule, _ in registered:
                constraints.remove(session.worker, session.observer, rule)
            session.worker.execute("alter table public.calls disable trigger user")
            session.worker.execute("alter table public.appointments disable trigger user")


_LAST_WRITE = "(select max(greatest(c.updated_at, c.created_at)) from public.calls as c)"


class _Run:
    """One mode's database, while the stream is played in it."""

    def __init__(self, mode: str, connection: Connection, applications: list[Application], pool: ThreadPoolExecutor):
        self.mode = mode
        self.connection = connection
        self.applications = applications
        self.rates: list[float] = []
        self.played = 0
        self.seconds = 0.0
        self.started_at: datetime = _value(connection, "select now()")
        self._pool = pool
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watch: Watch | None = None
        self._watcher: Future[None] | None = None
        self._complaints: list[GuardError] = []

    def watch(self, dsn: str) -> None:
        """Start detection, which goes on until the run is stopped."""
        self._watch = Watch(dsn, lambda _incidents: None, self._complaints.append)
        self._watcher = self._pool.submit(self._watch.run)

    def stop(self) -> None:
        self._stop.set()
        if self._watch is not None:
            self._watch.stop()

    def play(self, calls: list[Call], on_progress: Callable[[], None]) -> None:
        """Have the sessions share a part of the calls."""
        queue = iter(calls)

        def session(application: Application) -> None:
            while not self._stop.is_set():
                with self._lock:
                    call = next(queue, None)
                if call is None:
                    return
                application.play(call)
                with self._lock:
                    self.played += 1

        begin = time.monotonic()
        pending: set[Future[None]] = {self._pool.submit(session, application) for application in self.applications}
        while pending:
            done, pending = wait(pending, timeout=0.1)
            for task in done:
                task.result()  # what failed ends the run
            on_progress()
        seconds = time.monotonic() - begin
        self.seconds += seconds
        self.rates.append(len(calls) / seconds)

    def finish(self, throughput: Throughput | None) -> Result:
        """Wait until everything can be judged, repair what the mode repairs, and measure."""
        age = f"extract(epoch from max(grace) - (clock_timestamp() - {_LAST_WRITE}))::float + 0.1"
        time.sleep(max(0.0, _value(self.connection, f"select {age} from guard.rules")))  # noqa: S608  # constants
        if self._watcher is not None:
            due = "select exists (select from guard.pending_checks where due_at <= now())"
            while not self._watcher.done() and _value(self.connection, due):
                time.sleep(0.1)
            self.stop()
            self._watcher.result()
            if self._complaints:
                raise self._complaints[0]
            self.connection.execute("select from guard.detect()")
        if self.mode in ("correct", "enforce"):
            reconcile.reconcile(self.connection, reconcile.survey(self.connection, None), dry_run=False, pause=0)
        return _measure(self, throughput)


@contextmanager
def _opened(dsn: str, stream: Stream, mode: str) -> Iterator[_Run]:
    with ExitStack() as stack:
        connections = [stack.enter_context(database.connect(dsn)) for _ in range(stream.sessions + 1)]
        observer, *sessions = connections
        # sessions end before their connections are closed
        pool = stack.enter_context(ThreadPoolExecutor(stream.sessions + 1))
        guarded = mode != "off"
        run = _Run(mode, observer, [Application(session, stream.seed, guarded) for session in sessions], pool)
        stack.callback(run.stop)
        if guarded:
            run.watch(dsn)
        yield run


def _measure(run: _Run, throughput: Throughput | None) -> Result:
    """What stands at the end, by the rules' own views, and what was done on the way, by guard's tables."""
    connection = run.connection
    standing = audit.run(connection)
    refused = sum((application.refused for application in run.applications), Counter[str]())
    repaired: dict[str, int] = dict(
        connection.execute(
            """
            select a.alert_type, count(distinct a.entity_id)
            from guard.data_consistency_alerts as a
            where a.auto_corrected
            group by a.alert_type
            """
        ).fetchall()
    )
    queued: dict[str, int] = dict(
        connection.execute("select q.reason, count(*) from guard.manual_review_queue as q group by q.reason").fetchall()
    )
    detection = connection.execute(
        """
        select count(*), avg(l.seconds), percentile_cont(0.95) within group (order by l.seconds)
        from guard.incidents as i
        inner join guard.rules as r on i.rule = r.rule
        -- a row that was written again after it was found says nothing of how long finding it took
        left join lateral (
            select extract(epoch from i.first_seen_at - i.occurred_at)::float as seconds
            where i.first_seen_at >= i.occurred_at
        ) as l on true
        where r.severity <> 'info'
        """
    ).fetchone()
    assert detection is not None  # noqa: S101  # an aggregate
    found, mean, p95 = detection
    return {
        "guard": run.mode,
        "appointments": standing["total_appointments"],
        "consistency_rate_pct": standing["consistency_rate_pct"],
        "rules": [
            {
                "rule": count["rule"],
                "severity": count["severity"],
                "violations": count["violations"] or 0,
                "repaired": repaired.get(count["rule"], 0),
                "refused": refused[count["rule"]],
                "queued": queued.get(count["rule"], 0),
            }
            for count in standing["rules"]
        ],
        "violations": audit.violations(standing),
        "repaired": sum(repaired.values()),
        "refused": refused.total(),
        "queued": sum(queued.values()),
        "webhooks_recognised": sum(application.recognised for application in run.applications),
        "detected": found,
        "detection_mean_seconds": mean,
        "detection_p95_seconds": p95,
        "calls_per_second": run.played / run.seconds,
        "throughput": throughput,
        "kpis": _kpis(connection, run.started_at),
    }


def _kpis(connection: Connection, started_at: datetime) -> list[dict[str, Any]]:
    query = """
        select k.kpi, k.value::float8, k.unit, k.comparison, k.target::float8, k.met, k.rows_behind
        from guard.kpis(%s, clock_timestamp()) as k
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, (started_at,)).fetchall()


def _value(connection: Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None

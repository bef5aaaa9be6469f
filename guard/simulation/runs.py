"""`run` plays the stream once for each mode, several sessions at once, in a database made for it.

What stands at the end is measured with the rules' own views, what was done on the way with guard's tables.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, TypedDict

from psycopg.rows import dict_row

from guard import audit, constraints, database, install, reconcile, rules
from guard.database import Connection
from guard.errors import GuardError
from guard.simulation.application import Application
from guard.simulation.scratch import scratch_databases
from guard.simulation.stream import COMPANIES, CUSTOMERS, STAFF, Call, Stream, injected, plan
from guard.watch import Watch

MODES = ("off", "observe", "correct", "enforce")

#: Several modes are played in turns, part by part.
PARTS = 10

#: Called with what is going on, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


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


def run(dsn: str, stream: Stream, modes: Iterable[str], progress: Progress) -> Simulation:
    """Play the stream once for each mode, each in a fresh database on the server that `dsn` names, part by part.

    To be called in the main thread, whose signals it handles. Raises GuardError where no database can be made there,
    or guard cannot be installed in it.
    """
    calls = plan(stream)
    with scratch_databases(dsn) as scratch, ExitStack() as stack:
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
            where a.auto_corrected and not a.metadata ? 'follows'
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
    assert standing["consistency_rate_pct"] is not None  # noqa: S101  # guard made the tables
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

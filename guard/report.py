"""The daily report as people and machines read it. Every number comes from SQL: guard.daily_report makes the report."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any
from xml.etree import ElementTree

import jinja2
import pygal
from markupsafe import Markup
from pygal.style import Style

from guard.database import Connection
from guard.errors import GuardError, NotInstalledError

#: The report as guard.daily_report returns it; see sql/functions/daily_report.sql.
Report = dict[str, Any]

#: What stands where there is no number.
_NOTHING = "\N{EN DASH}"

#: What XML 1.0 cannot hold.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def get(connection: Connection, day: str, *, refresh: bool = False) -> Report:
    """The report of `day`: `today`, `yesterday` or a date such as 2026-01-31, in the application's time zone.

    A stored report of a day that was over is returned as it is, unless `refresh`; else the report is made and stored.
    Raises GuardError for what is not a day, and on a hot standby that has no report of it.
    """
    _require_installed(connection)
    wanted = _day(connection, day)
    if not refresh:
        stored = connection.execute(
            "select report from guard.daily_reports where report_date = %s and report -> 'complete' = 'true'", (wanted,)
        ).fetchone()
        if stored:
            return dict(stored[0])
    row = connection.execute("select guard.daily_report(%s)", (wanted,)).fetchone()
    if row is None or row[0] is None:
        raise GuardError(
            f"There is no report of {wanted} on this hot standby, and it cannot make one.",
            fix="Run guard report on the primary.",
        )
    return dict(row[0])


def _require_installed(connection: Connection) -> None:
    if connection.execute("select to_regnamespace('guard_bi')").fetchone() == (None,):
        raise NotInstalledError


def _day(connection: Connection, day: str) -> date:
    row = connection.execute(
        "select (now() at time zone s.value)::date from guard.settings as s where s.name = 'app_timezone'"
    ).fetchone()
    assert row is not None  # noqa: S101  # the setting is always there
    today: date = row[0]
    if day in ("today", "yesterday"):
        return today if day == "today" else date.fromordinal(today.toordinal() - 1)
    try:
        # fromisoformat alone would take 20260131 and 2026-W05-6 too
        return datetime.strptime(day, "%Y-%m-%d").date()
    except ValueError:
        raise GuardError(f"{day!r} is not a day.", fix="Write it as 2026-01-31, or say today or yesterday.") from None


def as_json(report: Report) -> str:
    return json.dumps(report, indent=2) + "\n"


def as_text(report: Report) -> str:
    return _environment().get_template("report.txt").render(report=report)


def as_html(report: Report) -> str:
    """One page that needs nothing else: no script, and no address of another server."""
    return _environment().get_template("report.html").render(report=report, charts=_charts(report))


def as_junit(report: Report) -> str:
    """One test suite: a case for each rule, which fails while something stands, and one for each KPI."""
    suite = ElementTree.Element(
        "testsuite", name=f"guard report {report['date']}", timestamp=report["generated_at"][:19]
    )
    for rule in report["rules"]:
        case = ElementTree.SubElement(suite, "testcase", classname="guard.rules", name=rule["rule"], time="0")
        if rule["error"]:
            ElementTree.SubElement(case, "error", type="rule_failed", message=_xml(rule["error"]))
        elif rule["standing"] and rule["severity"] != "info":
            failure = ElementTree.SubElement(
                case, "failure", type=rule["severity"], message=f"{rule['standing']} standing"
            )
            failure.text = f"{rule['found']} found, {rule['recovered']} recovered, for example {rule['examples']}"
    for kpi in report["kpis"]:
        case = ElementTree.SubElement(suite, "testcase", classname="guard.kpis", name=kpi["kpi"], time="0")
        if kpi["met"] is None:
            ElementTree.SubElement(case, "skipped", message="there was nothing to measure")
        elif not kpi["met"]:
            failure = ElementTree.SubElement(case, "failure", type="kpi", message=f"{measured(kpi)}, {target(kpi)}")
            failure.text = _xml(kpi["source"])
    cases = suite.findall("testcase")
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("tests", str(len(cases)))
    suite.set("time", "0")
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


FORMATS = {"text": as_text, "json": as_json, "html": as_html, "junit": as_junit}


def kpis(
    connection: Connection, starts: datetime | None, ends: datetime | None, days: int, company: int | None
) -> list[dict[str, Any]]:
    """The KPIs from `starts`, else `days` before the end, to `ends`, else now.

    A moment without a zone is in the application's. Raises psycopg errors with SQLSTATEs ZG701 and ZG703.
    """
    _require_installed(connection)
    cursor = connection.execute(
        """
        with given as (
            select
                coalesce(guard.instant(%(local_end)s::timestamp, s.value), %(end)s::timestamptz, now()) as ends,
                coalesce(guard.instant(%(local_start)s::timestamp, s.value), %(start)s::timestamptz) as starts
            from guard.settings as s
            where s.name = 'app_timezone'
        )

        select k.*
        from given as g
        cross join guard.kpis(coalesce(g.starts, g.ends - make_interval(days => %(days)s)), g.ends, %(company)s) as k
        """,
        {**_moment("start", starts), **_moment("end", ends), "days": days, "company": company},
    )
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _moment(name: str, moment: datetime | None) -> dict[str, datetime | None]:
    local = moment is not None and moment.tzinfo is None
    return {name: None if local else moment, f"local_{name}": moment if local else None}


def views(connection: Connection, name: str | None = None) -> list[dict[str, Any]]:
    """The views for BI tools with their comments and columns; or the one of that name, with or without its schema.

    Raises GuardError if there is no such view.
    """
    _require_installed(connection)
    rows = connection.execute(
        """
        select
            c.relname,
            obj_description(c.oid, 'pg_class'),
            jsonb_agg(
                jsonb_build_object(
                    'column', a.attname,
                    'type', format_type(a.atttypid, a.atttypmod),
                    'comment', col_description(c.oid, a.attnum)
                )
                order by a.attnum
            )
        from pg_catalog.pg_class as c
        inner join pg_catalog.pg_attribute as a on c.oid = a.attrelid and a.attnum > 0 and not a.attisdropped
        where
            c.relnamespace = to_regnamespace('guard_bi') and c.relkind = 'v'
            and (%(name)s::text is null or %(name)s in (c.relname, 'guard_bi.' || c.relname))
        group by c.oid, c.relname
        order by c.relname
        """,
        {"name": name},
    ).fetchall()
    if not rows and name is not None:
        raise GuardError(f"There is no view {name!r} in schema guard_bi.", fix="guard views lists them.")
    return [{"view": f"guard_bi.{view}", "comment": comment, "columns": columns} for view, comment, columns in rows]


def amount(value: float | None, unit: str = "", digits: int = 2) -> str:
    """A number with its unit, as in `1,234.5 ms`; a dash where there is none. Whole numbers have no decimals."""
    if value is None:
        return _NOTHING
    number = f"{value:,.{digits}f}"
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}".rstrip()


def measured(kpi: dict[str, Any]) -> str:
    return "not measured" if kpi["value"] is None else amount(kpi["value"], kpi["unit"])


def target(kpi: dict[str, Any]) -> str:
    return f"target {'at least' if kpi['comparison'] == '>=' else 'at most'} {amount(kpi['target'], kpi['unit'])}"


def verdict(kpi: dict[str, Any]) -> str:
    return {True: "met", False: "missed", None: "not measured"}[kpi["met"]]


def label(kpi: dict[str, Any]) -> str:
    """`validation_p95` as people write it."""
    return str(kpi["kpi"]).replace("_", " ").capitalize()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("guard", "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "amount": amount,
        "label": label,
        "measured": measured,
        "target": target,
        "verdict": verdict,
        "minute": _minute,
    }
    return environment


def _minute(moment: str | None) -> str:
    """A moment of the report, which is in the application's time zone, to the minute."""
    return _NOTHING if moment is None else moment[:16].replace("T", " ")


def _charts(report: Report) -> list[dict[str, Any]]:
    days = [f"{date.fromisoformat(day['day']):%-d %b}" for day in report["days"]]
    rules = [rule for rule in report["rules"] if rule["found"] or rule["standing"]][:8]
    classes = report["validations"]
    return [
        {
            "title": "Inconsistencies found per day",
            "svg": _chart(
                pygal.StackedBar,
                days,
                {
                    "corrected": [day["corrected"] for day in report["days"]],
                    "not corrected": [day["found"] - day["corrected"] for day in report["days"]],
                },
                x_labels_major_every=3,
                show_minor_x_labels=False,
            ),
        },
        {
            "title": "Calls and appointments per day",
            "svg": _chart(
                pygal.Line,
                days,
                {name: [day[name] for day in report["days"]] for name in ("calls", "appointments")},
                x_labels_major_every=3,
                show_minor_x_labels=False,
            ),
        },
        {
            "title": "Found and standing, by rule",
            "svg": _chart(
                pygal.HorizontalBar,
                [rule["rule"].replace("_", " ") for rule in reversed(rules)],
                {name: [rule[name] for rule in reversed(rules)] for name in ("found", "standing")},
            ),
        },
        {
            "title": "Duration of validations, in ms",
            "svg": _chart(
                pygal.StackedBar,
                [f"≤ {c['up_to_ms']}" if c["up_to_ms"] else "more" for c in classes],
                {
                    "passed": [c["validations"] - c["failed"] for c in classes],
                    "failed": [c["failed"] for c in classes],
                },
            ),
        },
    ]


def _chart(kind: type[Any], labels: Sequence[str], series: dict[str, list[int]], **options: Any) -> Markup | None:
    """The chart as an SVG element that the page's own CSS colours; None if it would show nothing."""
    if not any(value for values in series.values() for value in values):
        return None
    chart = kind(
        width=400,
        height=300,
        margin=8,
        style=Style(font_family="sans-serif", label_font_size=13, major_label_font_size=13, legend_font_size=14),
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        max_scale=6,
        min_scale=2,
        value_formatter=amount,
        truncate_label=-1,
        show_x_guides=False,
        js=[],
        css=[],
        **options,
    )
    chart.x_labels = labels
    for name, values in series.items():
        chart.add(name, values)
    root = chart.render_tree()
    # its style, its script and its comments; what it is called stands above it
    for child in list(root):
        if child.tag is ElementTree.Comment or child.tag in ("defs", "title"):
            root.remove(child)
    root.set("role", "img")
    root.set("aria-label", "; ".join(f"{name}: {_listed(labels, values)}" for name, values in series.items()))
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704  # pygal escapes what it is given


def _listed(labels: Sequence[str], values: Sequence[int]) -> str:
    """`7 Nov 3, 8 Nov 0`, for those who hear the page."""
    return ", ".join(f"{label} {amount(value)}" for label, value in zip(labels, values, strict=True))

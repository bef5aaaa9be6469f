-- The stored daily reports with their rollups by company, and the schema of the views for BI tools.
create schema guard_bi authorization guard_owner;

grant usage on schema guard_bi to guard_operator, guard_reader, guard_monitor;

comment on schema guard_bi is 'Views for BI tools, and nothing else: the rows, and one row per day.';

-- Who asks for the KPIs of one company is told if there is no such company.
grant select (id) on public.companies to guard_operator, guard_reader, guard_monitor;

set local role guard_owner;

create table if not exists guard.daily_reports (
    report_date date primary key,
    report jsonb not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table if not exists guard.daily_company_totals (
    report_date date not null references guard.daily_reports (report_date) on delete cascade,
    company_id bigint,
    calls bigint not null,
    consistent_calls bigint not null check (consistent_calls between 0 and calls),
    appointments bigint not null,
    found bigint not null,
    corrected bigint not null check (corrected between 0 and found),
    unique nulls not distinct (report_date, company_id)
);

create table if not exists guard.daily_kpis (
    report_date date not null references guard.daily_reports (report_date) on delete cascade,
    company_id bigint,
    kpi text not null,
    target numeric not null,
    value numeric,
    unit text not null,
    met boolean,
    rows_behind bigint not null,
    unique nulls not distinct (report_date, company_id, kpi)
);

comment on table guard.daily_reports is 'The daily report, one row per day of the application''s time zone.';
comment on column guard.daily_reports.report_date is 'The day, in settings.app_timezone.';
comment on column guard.daily_reports.report is 'The report, as guard.daily_report returns it.';
comment on column guard.daily_reports.created_at is 'When it was made first.';
comment on column guard.daily_reports.updated_at is 'When it was made last.';

comment on table guard.daily_company_totals is 'What the daily report counted, by company.';
comment on column guard.daily_company_totals.report_date is 'The day, in settings.app_timezone.';
comment on column guard.daily_company_totals.company_id is 'The company; null for rows that belong to none.';
comment on column guard.daily_company_totals.calls is 'Calls created on that day.';
comment on column guard.daily_company_totals.consistent_calls is
'Of these, the calls that broke no critical or warning rule when the report was made.';
comment on column guard.daily_company_totals.appointments is 'Appointments created on that day.';
comment on column guard.daily_company_totals.found is
'Defects found on that day: one per critical or warning rule and row.';
comment on column guard.daily_company_totals.corrected is 'Of these, the defects that guard corrected by itself.';

comment on table guard.daily_kpis is 'The KPIs of each day, of all companies together and of each that had rows.';
comment on column guard.daily_kpis.report_date is 'The day, in settings.app_timezone.';
comment on column guard.daily_kpis.company_id is 'The company; null for all of them together.';
comment on column guard.daily_kpis.kpi is 'Its name, as in guard.kpis.';
comment on column guard.daily_kpis.target is 'What it should be: at least, or at most, this.';
comment on column guard.daily_kpis.value is 'What it was; null where there was nothing to measure.';
comment on column guard.daily_kpis.unit is 'The unit of target and value.';
comment on column guard.daily_kpis.met is 'Whether the target was met; null where there was nothing to measure.';
comment on column guard.daily_kpis.rows_behind is 'How many rows the value was measured on.';

grant select on guard.daily_reports, guard.daily_company_totals, guard.daily_kpis
to guard_operator, guard_reader, guard_monitor;

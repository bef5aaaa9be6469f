-- provides: view guard_bi.kpis_daily
--
-- The KPIs that the daily report measured.

create or replace view guard_bi.kpis_daily
with (security_invoker = true)
as
select
    k.report_date,
    k.company_id,
    k.kpi,
    k.target,
    k.value,
    k.unit,
    case when k.met then 'met' when not k.met then 'missed' else 'not measured' end as status,
    k.rows_behind
from guard.daily_kpis as k;

comment on view guard_bi.kpis_daily is
'The KPIs, one row per day, company and KPI; company_id is null for all companies together.';
comment on column guard_bi.kpis_daily.report_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.kpis_daily.company_id is 'The company; null for all of them together.';
comment on column guard_bi.kpis_daily.kpi is 'Its name.';
comment on column guard_bi.kpis_daily.target is 'What it should be: at least, or at most, this.';
comment on column guard_bi.kpis_daily.value is 'What it was; null where there was nothing to measure.';
comment on column guard_bi.kpis_daily.unit is 'The unit of target and value.';
comment on column guard_bi.kpis_daily.status is 'met, missed or not measured.';
comment on column guard_bi.kpis_daily.rows_behind is 'How many rows it was measured on.';

grant select on guard_bi.kpis_daily to guard_operator, guard_reader, guard_monitor;

drop table guard.daily_kpis;
drop table guard.daily_company_totals;
drop table guard.daily_reports;

revoke select (id) on public.companies from guard_operator, guard_reader, guard_monitor;

drop schema guard_bi;

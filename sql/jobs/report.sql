-- provides: job report
--
-- Of yesterday, where the application's clocks are; and of the days before it on which the job did not run, as far as
-- two weeks back and no farther than the first report. A day that cannot be reported on does not keep yesterday's
-- waiting.

select guard.register_job(
    p_job => 'report',
    p_schedule => '0 2 * * *',
    p_every => '1 day',
    p_command => $$
        with missing as (
            select d.day
            from (
                select y.yesterday, y.yesterday - g.ago as day
                from (select (now() at time zone guard.setting('app_timezone'))::date - 1 as yesterday) as y
                cross join generate_series(0, 13) as g (ago)
            ) as d
            where
                not exists (
                    select from guard.daily_reports as r
                    where r.report_date = d.day and r.report -> 'complete' = 'true'
                )
                and (d.day = d.yesterday or exists (select from guard.daily_reports as r where r.report_date <= d.day))
        )
        select jsonb_build_object('reports', count(guard.daily_report(l.day)), 'more', coalesce(max(l.days) > 1, false))
        from (select max(m.day) as day, count(*) as days from missing as m having count(*) > 0) as l
    $$,
    p_description => 'write the report of the day before, and of days that were missed'
);

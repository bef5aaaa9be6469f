-- provides: job report
--
-- Stored in daily_reports.

select guard.register_job(
    p_job => 'report',
    p_schedule => '0 2 * * *',
    p_every => '1 day',
    p_command => $$
        select jsonb_build_object('report', guard.daily_report((now() at time zone 'UTC')::date - 1) is not null)
    $$,
    p_description => 'write the report of the day before'
);

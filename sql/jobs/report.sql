-- provides: job report
--
-- Of yesterday, where the application's clocks are.

select guard.register_job(
    p_job => 'report',
    p_schedule => '0 2 * * *',
    p_every => '1 day',
    p_command => $$
        select jsonb_build_object('date', d.yesterday, 'stored', guard.daily_report(d.yesterday) is not null)
        from (select (now() at time zone guard.setting('app_timezone'))::date - 1 as yesterday) as d
    $$,
    p_description => 'write the report of the day before'
);

-- provides: job detect_all
--
-- Defects between rows that are older than any window: made past the triggers, or by time.

select guard.register_job(
    p_job => 'detect_all',
    p_schedule => '15 3 * * *',
    p_every => '1 day',
    p_command => $$
        select jsonb_build_object('found', sum(d.found), 'new_incidents', sum(d.new_incidents))
        from guard.detect('1000 years') as d
    $$,
    p_description => 'run every rule over everything'
);

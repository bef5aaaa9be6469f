-- provides: job pending_checks
--
-- guard watch does this within a second; without it, this job does it within the minute.

select guard.register_job(
    p_job => 'pending_checks',
    p_schedule => '* * * * *',
    p_every => '1 minute',
    p_command => $$
        select jsonb_build_object('judged', p.judged, 'found', p.found, 'more', p.judged >= 1000)
        from guard.judge_pending(1000) as p
    $$,
    p_description => 'judge what was written a moment ago, once its grace has passed'
);

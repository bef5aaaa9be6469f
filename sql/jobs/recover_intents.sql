-- provides: job recover_intents
--
-- What the calendar said is recorded. Where it was not heard, guard intents recover --ask has a while to ask it; then a
-- person is asked. A step clears up so many; the run ends with the step that finds nothing to do.

select guard.register_job(
    p_job => 'recover_intents',
    p_schedule => '*/5 * * * *',
    p_every => '5 minutes',
    p_command => $$
        select jsonb_build_object(
            'recovered', count(*) filter (where r.action not in ('queued', 'postponed')),
            'queued', count(*) filter (where r.action = 'queued'),
            'postponed', count(*) filter (where r.action = 'postponed'),
            'more', count(*) filter (where r.action <> 'postponed') > 0
        )
        from guard.recover_intents(
            '1 minute', guard.setting('outcome_unknown_minutes')::numeric * interval '1 minute'
        ) as r
    $$,
    p_description => 'record what the calendar booked for a process that died, queue what nobody knows'
);

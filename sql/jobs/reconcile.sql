-- provides: job reconcile
--
-- A batch of each rule a step, resumed where the last run stopped, and on as long as there was something to do.

select guard.register_job(
    p_job => 'reconcile',
    p_schedule => '20 * * * *',
    p_every => '1 hour',
    p_command => $$
        select jsonb_build_object(
            'examined', coalesce(sum(r.examined), 0),
            'repaired', coalesce(sum(r.repaired), 0),
            'queued', coalesce(sum(r.queued), 0),
            'more', coalesce(bool_or(not r.is_last) and sum(r.repaired + r.queued) > 0, false)
        )
        from guard.reconcile(false) as r
    $$,
    p_description => 'repair what can be repaired, queue what cannot'
);

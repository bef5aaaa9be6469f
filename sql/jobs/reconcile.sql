-- provides: job reconcile
--
-- Keyset batches, resumed where the last run stopped.

select guard.register_job(
    p_job => 'reconcile',
    p_schedule => '20 * * * *',
    p_every => '1 hour',
    p_command => $$
        select jsonb_build_object(
            'examined', sum(r.examined), 'repaired', sum(r.repaired), 'queued', sum(r.queued)
        )
        from guard.reconcile(false) as r
    $$,
    p_description => 'repair what can be repaired, queue what cannot'
);

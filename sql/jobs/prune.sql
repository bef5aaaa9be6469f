-- provides: job prune
--
-- pg_cron's own history is pruned by a job in pg_cron's database: see guard/cron.py.

select guard.register_job(
    p_job => 'prune',
    p_schedule => '45 2 * * *',
    p_every => '1 day',
    p_command => $$select guard.prune_history()$$,
    p_description => 'delete events, metrics, sent messages, resolved incidents and runs that are past their time'
);

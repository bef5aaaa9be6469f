-- provides: job review_queue
--
-- An item is tried max_retry_attempts times.

select guard.register_job(
    p_job => 'review_queue',
    p_schedule => '10 * * * *',
    p_every => '1 hour',
    p_command => $$
        select jsonb_build_object('examined', q.examined, 'resolved', q.resolved)
        from guard.process_review_queue() as q
    $$,
    p_description => 'look again at what was queued for a person, and close what has come right'
);

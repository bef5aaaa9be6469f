-- provides: job digest
--
-- Sending is guard notify's work: it needs the network.

select guard.register_job(
    p_job => 'digest',
    p_schedule => '0 */4 * * *',
    p_every => '4 hours',
    p_command => $$
        select jsonb_build_object('messages', count(*)) from guard.bundle_notifications() as m
    $$,
    p_description => 'bundle warnings into a digest'
);

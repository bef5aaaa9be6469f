-- provides: job partitions
--
-- Months are made three ahead, so that a night that was missed does not matter.

select guard.register_job(
    p_job => 'partitions',
    p_schedule => '30 2 * * *',
    p_every => '1 day',
    p_command => $$select guard.maintain_alerts()$$,
    p_description => 'make the alerts partitions ahead, drop what is past its time'
);

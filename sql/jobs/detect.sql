-- provides: job detect
--
-- What the triggers did not see: rows written past them, and defects that come with time.

select guard.register_job(
    p_job => 'detect',
    p_schedule => '*/5 * * * *',
    p_every => '5 minutes',
    p_command => $$
        select jsonb_build_object('found', sum(d.found), 'new_incidents', sum(d.new_incidents))
        from guard.detect('1 hour') as d
    $$,
    p_description => 'run every rule over what was written in the last hour'
);

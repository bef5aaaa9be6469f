-- provides: function guard.setting(text)
-- provides: function guard.set_setting(text, text)
--
-- Settings are rows, so that an application in any language, a view and a trigger read the same value.
-- Raises ZG001 for a name that is not registered, ZG002 for a zone that does not exist, ZG003 for a value of another
-- kind than the setting's default, or out of its range.

create or replace function guard.setting(p_name text)
returns text
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select s.value from guard.settings as s where s.name = p_name
$$;

comment on function guard.setting(text) is 'The value of a setting; null if there is no such setting.';

grant execute on function guard.setting(text) to guard_app, guard_operator, guard_reader, guard_monitor;

-- Writes settings and audit_log; the caller's name goes into the log.
create or replace function guard.set_setting(p_name text, p_value text)
returns guard.settings
language plpgsql
volatile
security definer -- operators may change a value only together with its line in the audit log
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before guard.settings;
    v_after guard.settings;
    v_is_whole boolean;
begin
    select s.* into v_before from guard.settings as s where s.name = p_name for no key update;
    if not found then
        raise exception using
            errcode = 'ZG001',
            message = format('there is no setting %L', p_name),
            hint = 'select name, unit, description from guard.settings lists them';
    end if;
    if p_name = 'app_timezone'
        and not exists (select from pg_catalog.pg_timezone_names as z where z.name = p_value)
    then
        raise exception using
            errcode = 'ZG002',
            message = format('%L is not a time zone', p_value),
            hint = 'use a name of pg_timezone_names, such as UTC or Europe/Berlin';
    end if;
    -- what is counted is whole
    v_is_whole := v_before.unit::text = any('{days,incidents,attempts,failures,successes}');
    if not (case
        when p_value is null then false
        when p_name = 'app_timezone' then true
        when v_before.min_value is null then p_value::text = any('{true,false}')
        when p_value !~ case when v_is_whole then '^\d{1,9}$' else '^\d{1,9}(\.\d{1,6})?$' end then false
        else p_value::numeric between v_before.min_value and v_before.max_value
    end) then
        raise exception using
            errcode = 'ZG003',
            message = format('%s cannot be %s', p_name, coalesce(quote_literal(left(p_value, 60)), 'null')),
            hint = case
                when v_before.min_value is null
                    then format('It is true or false, by default %s.', v_before.default_value)
                else format(
                    'It is a %snumber from %s to %s (%s), by default %s.', case when v_is_whole then 'whole ' end,
                    v_before.min_value, v_before.max_value, v_before.unit, v_before.default_value
                )
            end;
    end if;
    update guard.settings as s set value = p_value, updated_at = now() where s.name = p_name returning s.* into v_after;
    insert into guard.audit_log (action, object, before, after)
    values ('set_setting', p_name, to_jsonb(v_before), to_jsonb(v_after));
    return v_after;
end
$$;

comment on function guard.set_setting(text, text) is 'Change a setting; the change is audited.';

grant execute on function guard.set_setting(text, text) to guard_operator;

-- The one place that says what there is to set: name, default, unit, least and greatest value, meaning. The Python
-- layer reads it here, so each line is six literals; but the zone of the application's local timestamps starts as the
-- one that this server writes them in.
insert into guard.settings (name, value, default_value, unit, min_value, max_value, description)
select
    s.name,
    s.default_value as value,
    s.default_value,
    s.unit,
    s.min_value,
    s.max_value,
    s.description
from (
    values
    (
        'app_timezone', current_setting('TimeZone'), 'time zone name', null, null,
        'The zone that the application''s timestamp columns without a zone are written in.'
    ),
    ('failure_threshold', '3', 'failures', 1, 1000, 'After how many consecutive failures a circuit opens.'),
    (
        'success_threshold', '2', 'successes', 1, 1000,
        'After how many consecutive successes of probes a circuit closes.'
    ),
    ('cooldown_seconds', '30', 'seconds', 0, 86400, 'How long a circuit stays open before a probe may pass.'),
    ('timeout_seconds', '10', 'seconds', 0.001, 86400, 'How long a guarded operation may take.'),
    (
        'lease_seconds', '15', 'seconds', 0, 86400,
        'When a probe whose prober died is given up; never before timeout_seconds.'
    ),
    ('per_service', 'true', 'boolean', null, null, 'Whether each service has a circuit of its own.'),
    ('per_staff', 'false', 'boolean', null, null, 'Whether each staff member has a circuit of its own.'),
    (
        'max_appointment_age_seconds', '300', 'seconds', 1, 86400,
        'How old an appointment may be when the booking that made it is validated.'
    ),
    (
        'max_retry_attempts', '3', 'attempts', 0, 100,
        'How often what failed is tried again: by retry in Python, and a review item by the hourly job.'
    ),
    (
        'outcome_unknown_minutes', '15', 'minutes', 0, 10080,
        'How long it may stay unknown whether the calendar booked, so that it can be asked, before a person is.'
    ),
    (
        'base_delay_seconds', '1', 'seconds', 0, 3600,
        'How long retry waits before its first new attempt; then twice as long.'
    ),
    ('max_delay_seconds', '8', 'seconds', 0, 3600, 'How long retry waits between two attempts at most.'),
    (
        'retry_budget', '20', 'attempts', 1, 10000,
        'How many new attempts retry makes in a burst, in each process; when they are used up it gives up at once.'
    ),
    (
        'retry_budget_per_second', '2', 'attempts per second', 0, 10000,
        'How many attempts of the retry_budget come back each second.'
    ),
    (
        'replay_window_seconds', '300', 'seconds', 1, 86400,
        'How far the time in a webhook''s signature may be from now, before or after.'
    ),
    (
        'incident_sample_cap', '1000', 'incidents', 1, 100000,
        'How many standing incidents a rule keeps; the others are counted.'
    ),
    (
        'alert_throttle_minutes', '5', 'minutes', 0, 1440,
        'The least time between two messages about one kind of critical finding; what comes meanwhile is gathered.'
    ),
    (
        'digest_hours', '4', 'hours', 0, 168,
        'How long warnings are gathered before they go out as one digest.'
    ),
    (
        'max_delivery_attempts', '10', 'attempts', 1, 1000,
        'How often a message is tried on a channel before it is given up.'
    ),
    ('delivery_timeout_seconds', '10', 'seconds', 1, 3600, 'How long a channel may take to accept a message.'),
    (
        'alert_retention_days', '90', 'days', 1, 36500,
        'How long alerts of what was corrected are kept, and with them the values before.'
    ),
    (
        'uncorrected_alert_retention_days', '365', 'days', 1, 36500,
        'How long other alerts are kept; never shorter than those of what was corrected.'
    ),
    ('incident_retention_days', '365', 'days', 1, 36500, 'How long an incident is kept after it was resolved.'),
    (
        'history_retention_days', '90', 'days', 1, 36500,
        'How long events and metrics of circuits, validations, webhooks, faults and sent messages are kept.'
    ),
    ('job_run_retention_days', '14', 'days', 1, 36500, 'How long the runs of jobs are kept, those of pg_cron too.')
) as s (name, default_value, unit, min_value, max_value, description)
on conflict (name) do update set
    unit = excluded.unit,
    min_value = excluded.min_value,
    max_value = excluded.max_value,
    description = excluded.description;

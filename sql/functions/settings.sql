-- provides: function guard.setting(text)
-- provides: function guard.set_setting(text, text)
--
-- Settings are rows, so that an application in any language, a view and a trigger read the same value.
-- Raises ZG001 for a name that is not registered, ZG002 for a zone that does not exist, ZG003 for a value of another
-- kind than the setting's default.

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
    if
        p_value is null
        or (v_before.default_value ~ '^\d+(\.\d+)?$' and p_value !~ '^\d{1,9}(\.\d{1,6})?$')
        -- what is counted is whole
        or (v_before.unit::text = any('{days,incidents,attempts,failures,successes}') and p_value !~ '^\d{1,6}$')
        or (v_before.default_value in ('true', 'false') and p_value not in ('true', 'false'))
    then
        raise exception using
            errcode = 'ZG003',
            message = format('%s cannot be %s', p_name, coalesce(quote_literal(left(p_value, 60)), 'null')),
            hint = format('Its default is %s, and its unit: %s.', v_before.default_value, v_before.unit);
    end if;
    update guard.settings as s set value = p_value, updated_at = now() where s.name = p_name returning s.* into v_after;
    insert into guard.audit_log (action, object, before, after)
    values ('set_setting', p_name, to_jsonb(v_before), to_jsonb(v_after));
    return v_after;
end
$$;

comment on function guard.set_setting(text, text) is 'Change a setting; the change is audited.';

grant execute on function guard.set_setting(text, text) to guard_operator;

-- The one place that says what there is to set: name, default, unit, meaning. The Python layer reads it here, so each
-- line is four literals; but the zone of the application's local timestamps starts as the one that this server writes
-- them in.
insert into guard.settings (name, value, default_value, unit, description)
select
    s.name,
    s.default_value as value,
    s.default_value,
    s.unit,
    s.description
from (
    values
    (
        'app_timezone', current_setting('TimeZone'), 'time zone name',
        'The zone that the application''s timestamp columns without a zone are written in.'
    ),
    ('failure_threshold', '3', 'failures', 'After how many consecutive failures a circuit opens.'),
    ('success_threshold', '2', 'successes', 'After how many consecutive successes of probes a circuit closes.'),
    ('cooldown_seconds', '30', 'seconds', 'How long a circuit stays open before a probe may pass.'),
    ('timeout_seconds', '10', 'seconds', 'How long a guarded operation may take.'),
    ('lease_seconds', '15', 'seconds', 'When a probe whose prober died is given up; never before timeout_seconds.'),
    ('per_service', 'true', 'boolean', 'Whether each service has a circuit of its own.'),
    ('per_staff', 'false', 'boolean', 'Whether each staff member has a circuit of its own.'),
    (
        'max_appointment_age_seconds', '300', 'seconds',
        'How old an appointment may be when the booking that made it is validated.'
    ),
    (
        'max_retry_attempts', '3', 'attempts',
        'How often what failed is tried again: by retry in Python, and a review item by the hourly job.'
    ),
    (
        'outcome_unknown_minutes', '15', 'minutes',
        'How long it may stay unknown whether the calendar booked, so that it can be asked, before a person is.'
    ),
    ('base_delay_seconds', '1', 'seconds', 'How long retry waits before its first new attempt; then twice as long.'),
    ('incident_sample_cap', '1000', 'incidents', 'How many standing incidents a rule keeps; the others are counted.'),
    (
        'alert_throttle_minutes', '5', 'minutes',
        'The least time between two messages about one kind of critical finding; what comes meanwhile is gathered.'
    ),
    ('digest_hours', '4', 'hours', 'How long warnings are gathered before they go out as one digest.'),
    ('max_delivery_attempts', '10', 'attempts', 'How often a message is tried on a channel before it is given up.'),
    ('delivery_timeout_seconds', '10', 'seconds', 'How long a channel may take to accept a message.'),
    (
        'alert_retention_days', '90', 'days',
        'How long alerts of what was corrected are kept, and with them the values before.'
    ),
    (
        'uncorrected_alert_retention_days', '365', 'days',
        'How long other alerts are kept; never shorter than those of what was corrected.'
    ),
    ('incident_retention_days', '365', 'days', 'How long an incident is kept after it was resolved.'),
    (
        'history_retention_days', '90', 'days',
        'How long events and metrics of circuits, validations, webhooks, faults and sent messages are kept.'
    ),
    ('job_run_retention_days', '14', 'days', 'How long the runs of jobs are kept, those of pg_cron too.')
) as s (name, default_value, unit, description)
on conflict (name) do update set unit = excluded.unit, description = excluded.description;

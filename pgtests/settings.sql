-- Settings are rows with a unit and a default; a change is checked and audited.
begin;
select plan(22);

select is(guard.setting('app_timezone'), current_setting('TimeZone'), 'the zone starts as the server''s');
select is(guard.setting('nope'), null, 'an unknown setting is null');
select lives_ok($$select guard.set_setting('app_timezone', 'Europe/Berlin')$$, 'a setting can be changed');
select is(guard.setting('app_timezone'), 'Europe/Berlin', 'and is');
select results_eq(
    $$select before ->> 'value' <> 'Europe/Berlin', after ->> 'value'
    from guard.audit_log where object = 'app_timezone'$$,
    $$values (true, 'Europe/Berlin')$$, 'the change is audited'
);
select throws_ok($$select guard.set_setting('nope', '1')$$, 'ZG001', null, 'an unknown setting cannot be set');
select throws_ok(
    $$select guard.set_setting('app_timezone', 'Berlin')$$, 'ZG002', null,
    'nor a zone that does not exist'
);
select throws_ok($$select guard.set_setting('cooldown_seconds', 'soon')$$, 'ZG003', null, 'nor a number that is none');
select throws_ok($$select guard.set_setting('cooldown_seconds', null)$$, 'ZG003', null, 'nor nothing');
select throws_ok($$select guard.set_setting('per_staff', '1')$$, 'ZG003', null, 'nor a truth value that is none');
select throws_ok($$select guard.set_setting('incident_sample_cap', '1.5')$$, 'ZG003', null, 'nor half an incident');
select throws_ok(
    $$select guard.set_setting('alert_retention_days', '99999999')$$, 'ZG003', null, 'nor more days than there are'
);
select lives_ok($$select guard.set_setting('cooldown_seconds', '2.5')$$, 'a number can be set');

select is_empty(
    $$select name from guard.settings where name <> 'app_timezone' and case
        when min_value is null or max_value is null
            then not (unit = 'boolean' and num_nonnulls(min_value, max_value) = 0 and default_value in ('true', 'false'))
        else not default_value::numeric between min_value and max_value
    end$$,
    'every number has a range, and its default lies in it'
);
select is_empty(
    $$select s.name, end_of_range.value
    from guard.settings as s
    cross join lateral (values (s.min_value), (s.max_value)) as end_of_range (value)
    where s.min_value is not null
    and (guard.set_setting(s.name, end_of_range.value::text)).value::numeric is distinct from end_of_range.value$$,
    'the ends of a range can be set'
);
select
    throws_ok(
        format('select guard.set_setting(%L, %L)', s.name, s.value), 'ZG003', null, s.value || ' is out of range'
    )
from (
    values
    ('failure_threshold', '0'), ('timeout_seconds', '0'), ('cooldown_seconds', '-1'), ('max_retry_attempts', '101'),
    ('alert_retention_days', '36501')
) as s (name, value);

set local role guard_operator;
select throws_ok(
    $$update guard.settings set value = '0' where name = 'failure_threshold'$$, '42501', null,
    'an operator cannot go round the check'
);
reset role;

set local timezone = 'Asia/Tokyo';
select is(
    guard.instant(timestamp '2026-07-01 12:00'), timestamptz '2026-07-01 10:00+00',
    'local timestamps are read in it, whatever the session''s zone'
);

select * from finish();
rollback;

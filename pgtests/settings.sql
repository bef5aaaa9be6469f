-- Settings are rows with a unit and a default; a change is checked and audited.
begin;
select plan(14);

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

set local timezone = 'Asia/Tokyo';
select is(
    guard.instant(timestamp '2026-07-01 12:00'), timestamptz '2026-07-01 10:00+00',
    'local timestamps are read in it, whatever the session''s zone'
);

select * from finish();
rollback;

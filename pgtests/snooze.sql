-- A snooze ends by itself, however old the defect is, and is told.
begin;
select plan(9);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (id, company_id, direction, created_at, updated_at)
values (1, 1, null, now() - interval '3 hours', now() - interval '3 hours');
update guard.rules set mode = 'observe' where rule = 'missing_direction';
select is((select sum(new_incidents)::integer from guard.detect('1 day')), 1, 'an incident');
select is(
    (select s.status from guard.incidents as i cross join lateral guard.set_incident(
        i.id, 'snoozed', p_snoozed_until => now() + interval '2 hours'
    ) as s), 'snoozed', 'is snoozed'
);
delete from guard.notifications;
update guard.incidents set last_seen_at = now() - interval '1 hour';
select lives_ok('select * from guard.detect()', 'looked at');
select results_eq(
    'select status, last_seen_at = now() from guard.incidents', $$values ('snoozed', true)$$,
    'seen, though it is older than the window'
);
select is_empty('select from guard.notifications', 'and nobody is told');

update guard.incidents set snoozed_until = now() - interval '1 second', last_notified_at = null;
select results_eq(
    'select sum(found)::integer, sum(new_incidents)::integer from guard.detect()', 'values (0, 0)',
    'it is not news when the time is over'
);
select results_eq(
    'select status, snoozed_until, last_notified_at = now() from guard.incidents',
    $$values ('open', null::timestamptz, true)$$, 'but open again'
);
select results_eq(
    $$select kind, entity_id, message like 'missing_direction: call 1: %still stands' from guard.notifications$$,
    $$values ('missing_direction', 1::bigint, true)$$, 'with a message'
);
select is(
    (select count(*)::integer from guard.data_consistency_alerts where metadata ->> 'mode' = 'detect'), 1,
    'and the one alert'
);

select * from finish();
rollback;

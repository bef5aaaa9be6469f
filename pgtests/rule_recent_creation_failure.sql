-- A failed booking is a fact: it is recorded in every mode but off, never repaired, never refused.
begin;
select plan(7);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, session_outcome) values (1, 1, 'inbound', 'booking_failed');
select results_eq(
    'select alert_type, entity_id, auto_corrected from guard.data_consistency_alerts',
    $$values ('recent_creation_failure', 1::bigint, false)$$, 'correct: it is recorded'
);
update public.calls set status = 'ended' where id = 1;
select is((select count(*) from guard.data_consistency_alerts), 1::bigint, 'once, not on every update');
update public.calls set session_outcome = 'creation_failed' where id = 1;
select is((select count(*) from guard.data_consistency_alerts), 2::bigint, 'another failure is another fact');

insert into public.calls (id, company_id, direction, session_outcome, created_at, updated_at)
values (2, 1, 'inbound', 'booking_failed', now() - interval '59 minutes', now() - interval '59 minutes'),
(3, 1, 'inbound', 'booking_failed', now() - interval '61 minutes', now() - interval '61 minutes');
select bag_eq(
    'select entity_id from guard.recent_creation_failure', array[1, 2]::bigint[],
    'the view looks back one hour'
);

select throws_ok(
    $$select guard.set_rule('recent_creation_failure', 'enforce')$$, 'ZG013', null, 'a fact cannot be enforced'
);
select guard.set_rule('recent_creation_failure', 'observe');
insert into public.calls (id, company_id, direction, session_outcome) values (4, 1, 'inbound', 'booking_failed');
select isnt_empty('select from guard.data_consistency_alerts where entity_id = 4', 'observe: it is recorded');
select guard.set_rule('recent_creation_failure', 'off');
insert into public.calls (id, company_id, direction, session_outcome) values (5, 1, 'inbound', 'booking_failed');
select is_empty('select from guard.data_consistency_alerts where entity_id = 5', 'off: it is not');

select * from finish();
rollback;

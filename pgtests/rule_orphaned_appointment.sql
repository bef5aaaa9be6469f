-- An appointment that came from a call and does not name it.
begin;
select plan(18);

insert into public.companies (id, name) values (1, 'A'), (2, 'B');
insert into public.calls (id, company_id, direction, booking_id)
values (1, 1, 'inbound', 'bk_1'), (2, 1, 'inbound', 'bk_2'), (3, 1, 'inbound', 'bk_2'), (4, 2, 'inbound', 'bk_4');

insert into public.appointments (id, company_id, source, calcom_v2_booking_id) values (1, 1, 'retell_webhook', 'bk_1');
select is(
    (select a.call_id from public.appointments as a where a.id = 1), 1::bigint,
    'correct: linked through the booking id'
);
select results_eq(
    'select appointment_made, session_outcome, appointment_link_status from public.calls where id = 1',
    $$values (true, 'appointment_booked', 'linked')$$, 'correct: and its call follows'
);
select results_eq(
    'select alert_type, entity_type, entity_id, auto_corrected from guard.data_consistency_alerts',
    $$values ('orphaned_appointment', 'appointment', 1::bigint, true)$$, 'correct: the link is recorded'
);

insert into public.appointments (id, company_id, source, calcom_v2_booking_id)
values (2, 1, 'retell_webhook', 'bk_2'), (3, 1, 'retell_webhook', 'bk_4'), (4, 1, 'retell_webhook', null);
select is_empty(
    'select from public.appointments where id in (2, 3, 4) and call_id is not null',
    'correct: not with two candidates, another company''s call, or no booking id'
);
select bag_eq(
    'select entity_id from guard.data_consistency_alerts where not auto_corrected', array[2, 3, 4]::bigint[],
    'correct: what cannot be linked is recorded'
);
select bag_eq('select entity_id from guard.orphaned_appointment', array[2, 3, 4]::bigint[], 'the view finds them');
insert into public.appointments (id, company_id, source) values (5, 1, 'manual');
select is_empty(
    'select from guard.orphaned_appointment where entity_id = 5',
    'an appointment from elsewhere needs no call'
);

alter table public.appointments drop constraint appointments_call_id_fkey;
insert into public.appointments (id, company_id, source, call_id) values (6, 1, 'retell_webhook', 99);
select isnt_empty(
    'select from guard.data_consistency_alerts where entity_id = 6', 'a call that does not exist is recorded'
);
delete from public.calls where id = 1;
select isnt_empty(
    'select from guard.data_consistency_alerts where entity_id = 1 and not auto_corrected',
    'and so is a call that was deleted'
);

alter table public.appointments alter company_id drop not null;
insert into public.appointments (id, company_id, source, call_id) values (9, null, 'retell_webhook', 99);
select isnt_empty(
    'select from guard.data_consistency_alerts where entity_id = 9', 'and one that names no company either'
);
insert into public.appointments (id, company_id, source) values (10, null, 'manual');
update public.appointments set source = 'retell_webhook', call_id = 99 where id = 10;
select isnt_empty('select from guard.data_consistency_alerts where entity_id = 10', 'an update too');

select guard.set_rule('orphaned_appointment', 'observe');
insert into public.calls (id, company_id, direction, booking_id) values (7, 1, 'inbound', 'bk_7');
insert into public.appointments (id, company_id, source, calcom_v2_booking_id) values (7, 1, 'retell_webhook', 'bk_7');
select is((select a.call_id from public.appointments as a where a.id = 7), null, 'observe: nothing is changed');
select isnt_empty('select from guard.data_consistency_alerts where entity_id = 7', 'observe: it is recorded');

select guard.set_rule('orphaned_appointment', 'off');
insert into public.appointments (id, company_id, source) values (8, 1, 'retell_webhook');
select is_empty('select from guard.data_consistency_alerts where entity_id = 8', 'off: it is not');

select guard.set_rule('orphaned_appointment', 'enforce');
select throws_ok(
    $$insert into public.appointments (id, company_id, source) values (11, 1, 'retell_webhook')$$, 'ZG105', null,
    'enforce: an orphan is refused'
);
select throws_ok(
    $$insert into public.appointments (id, company_id, source, call_id) values (11, 1, 'retell_webhook', 99)$$,
    'ZG105', null,
    'enforce: and so is a call that does not exist'
);
select throws_ok(
    $$insert into public.appointments (id, source, call_id) values (11, 'retell_webhook', 99)$$, 'ZG105', null,
    'enforce: without a company too'
);
insert into public.appointments (id, company_id, source, call_id) values (11, 2, 'retell_webhook', 4);
select throws_ok('delete from public.calls where id = 4', 'ZG105', null, 'enforce: a call with appointments stays');

select * from finish();
rollback;

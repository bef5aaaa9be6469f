-- Is the booking really there? Six checks in order, the first failure wins.
begin;
select plan(18);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction) values (1, 1, 'inbound'), (2, 1, 'inbound'), (3, 1, 'inbound');
insert into public.appointments (id, company_id, call_id, calcom_v2_booking_id, created_at)
values (1, 1, 1, 'bk_1', now()), (2, 1, 2, 'bk_2', now() - interval '301 seconds'),
(3, 1, null, 'bk_3', now());

select results_eq(
    'select success, reason from guard.validate_appointment(1, 1, $$bk_1$$)', 'values (true, null::text)', 'all is well'
);
select results_eq(
    'select success, reason from guard.validate_appointment(1)', 'values (true, null::text)', 'the call alone will do'
);
select results_eq(
    'select success, reason from guard.validate_appointment(1, null, $$bk_1$$)', 'values (true, null::text)',
    'or the booking id'
);
select is((select v.reason from guard.validate_appointment(3) as v), 'appointment_not_found', '1: it exists');
select is((select v.reason from guard.validate_appointment(1, 99) as v), 'appointment_not_found', '1: by its id');
select is(
    (select v.reason from guard.validate_appointment(1, 3) as v), 'appointment_not_linked',
    '2: it belongs to the call'
);
select is(
    (select v.reason from guard.validate_appointment(2, 1, 'bk_9') as v), 'appointment_not_linked', '2 comes before 3'
);
select is(
    (select v.reason from guard.validate_appointment(1, 1, 'bk_9') as v), 'booking_id_mismatch', '3: it is this booking'
);
update public.appointments set status = 'cancelled' where id = 2;
select is((select v.reason from guard.validate_appointment(2) as v), 'appointment_cancelled', '4: it still stands');
update public.appointments set status = 'no_show' where id = 2;
select is((select v.reason from guard.validate_appointment(2) as v), 'appointment_too_old', '5: it was made just now');
select is(
    (select v.details ->> 'age_seconds' from guard.validate_appointment(2) as v), '301',
    '5: and says how old it is'
);
set local session_replication_role = replica;
update public.calls set appointment_link_status = null where id = 1;
set local session_replication_role = origin;
select is((select v.reason from guard.validate_appointment(1) as v), 'flags_inconsistent', '6: the call says so');

select is(
    (select v.reason from guard.validate_appointment(-7) as v), 'appointment_not_found',
    'an unknown call has none'
);
select throws_ok('select guard.validate_appointment(null)', 'ZG307', null, 'no call');
select guard.set_setting('max_appointment_age_seconds', '400');
select ok((select v.success from guard.validate_appointment(2) as v), 'the age is a setting');
insert into public.appointments (company_id, call_id, status) values (1, 2, 'cancelled');
select ok((select v.success from guard.validate_appointment(2) as v), 'an appointment that stands is looked at first');
select is((select count(*) from guard.validation_metrics), 15::bigint, 'every validation leaves its measure');
select is_empty('select from guard.validation_metrics where duration_ms < 0 or duration_ms is null', 'in milliseconds');

select * from finish();
rollback;

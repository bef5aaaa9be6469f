-- One staff member, two active appointments at one time.
begin;
select plan(15);

insert into public.companies (id, name) values (1, 'A');
insert into public.staff (id, company_id, name) values (1, 1, 'S'), (2, 1, 'T');
insert into public.appointments (id, company_id, staff_id, starts_at, ends_at)
values (1, 1, 1, '2030-01-01 09:00', '2030-01-01 10:00');
select throws_ok(
    $$insert into public.appointments (company_id, staff_id, starts_at, ends_at)
    values (1, 1, '2030-01-01 09:30', '2030-01-01 10:30')$$, '23P01', null,
    'correct: the EXCLUDE constraint of a table that guard made refuses it'
);
select lives_ok(
    $$insert into public.appointments (id, company_id, staff_id, status, starts_at, ends_at) values
    (2, 1, 1, 'booked', '2030-01-01 10:00', '2030-01-01 11:00'),
    (3, 1, 1, 'cancelled', '2030-01-01 09:30', '2030-01-01 10:30'),
    (4, 1, 2, 'booked', '2030-01-01 09:30', '2030-01-01 10:30'),
    (5, 1, null, 'booked', '2030-01-01 09:30', '2030-01-01 10:30'),
    (6, 1, 1, 'booked', '2030-01-01 10:30', '2030-01-01 09:30'),
    (7, 1, 1, 'booked', '2030-01-01 10:30', null)$$,
    'next to each other, cancelled, of others, of nobody, backwards or open-ended: no overlap'
);

alter table public.appointments drop constraint guard_overlapping_appointment;
insert into public.appointments (id, company_id, staff_id, starts_at, ends_at)
values (10, 1, 1, '2030-01-01 09:30', '2030-01-01 10:30');
select results_eq(
    $$select entity_id, auto_corrected from guard.data_consistency_alerts
    where alert_type = 'overlapping_appointment'$$,
    $$values (10::bigint, false)$$, 'correct, without the constraint: the later one is recorded, once'
);
select results_eq('select entity_id from guard.overlapping_appointment', array[10::bigint], 'the view finds it');

select guard.set_rule('overlapping_appointment', 'observe');
update public.appointments set status = 'booked' where id = 3;
select isnt_empty(
    'select from guard.data_consistency_alerts where entity_id = 3',
    'observe: taking up a slot again is recorded'
);
update public.appointments set updated_at = now() where id = 3;
select is(
    (select count(*) from guard.data_consistency_alerts as a where a.entity_id = 3), 1::bigint,
    'once, not on every update'
);

select guard.set_rule('overlapping_appointment', 'off');
insert into public.appointments (id, company_id, staff_id, starts_at, ends_at)
values (11, 1, 1, '2030-01-01 09:30', '2030-01-01 10:30');
select is_empty('select from guard.data_consistency_alerts where entity_id = 11', 'off: nothing is recorded');

select guard.set_rule('overlapping_appointment', 'enforce');
select throws_ok(
    $$insert into public.appointments (id, company_id, staff_id, starts_at, ends_at)
    values (40, 1, 1, '2030-01-01 09:45', '2030-01-01 09:50')$$, 'ZG111', null,
    'enforce: refused, also before the constraint is there'
);
update public.appointments set id = 12 where id = 4;
select throws_ok(
    'update public.appointments set staff_id = 1 where id = 12', 'ZG111', null,
    'enforce: moving into a taken slot is refused'
);
select lives_ok(
    $$update public.appointments set status = 'done' where id = 1$$, 'enforce: what overlapped before can be written'
);
select throws_ok(
    $$insert into public.appointments (id, company_id, staff_id, starts_at, ends_at) values
    (20, 1, 2, '2031-01-01 09:00', '2031-01-01 10:00'), (21, 1, 2, '2031-01-01 09:59', '2031-01-01 11:00')$$,
    'ZG111', null, 'enforce: also within one statement'
);
insert into public.appointments (id, company_id, staff_id, starts_at, ends_at) values
(30, 1, 2, '2032-01-01 09:00', '2032-01-01 10:00'), (31, 1, 2, '2032-01-01 10:00', '2032-01-01 11:00'),
(32, 1, 2, '2032-01-01 15:00', '2032-01-01 16:00');
select throws_ok(
    $$update public.appointments set ends_at = '2032-01-01 10:01' where id = 30$$, 'ZG111', null,
    'enforce: so is moving the one that was made first'
);
select throws_ok(
    $$insert into public.appointments (id, company_id, staff_id, starts_at, ends_at)
    values (40, 1, 2, '2032-01-01 12:00', '2032-01-01 12:30'), (41, 1, 2, '2032-01-01 08:00', '2032-01-01 18:00')$$,
    'ZG111', null, 'enforce: an appointment that others lie within'
);
select lives_ok(
    $$insert into public.appointments (id, company_id, staff_id, starts_at, ends_at) values
    (40, 1, 2, '2032-01-01 11:00', '2032-01-01 12:00'), (41, 1, 2, '2032-01-01 14:00', '2032-01-01 15:00'),
    (42, 1, 2, '2032-01-01 16:00', '2032-01-01 17:00')$$,
    'enforce: free slots between taken ones'
);
select is(
    (select count(*) from guard.overlapping_appointment as o where o.entity_id in (1, 2)), 0::bigint,
    'the one that was there first is not to blame'
);

select * from finish();
rollback;

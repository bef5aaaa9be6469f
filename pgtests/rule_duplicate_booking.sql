-- One remote booking on several appointments.
begin;
select plan(9);

insert into public.companies (id, name) values (1, 'A');
insert into public.appointments (id, company_id, calcom_v2_booking_id)
values (1, 1, 'bk_1'), (2, 1, null), (3, 1, null);
select throws_ok(
    $$insert into public.appointments (company_id, calcom_v2_booking_id) values (1, 'bk_1')$$, '23505', null,
    'correct: the unique index of a table that guard made refuses it'
);

drop index public.guard_duplicate_booking;
insert into public.appointments (id, company_id, calcom_v2_booking_id) values (4, 1, 'bk_1'), (5, 1, 'bk_1');
select bag_eq(
    $$select entity_id from guard.data_consistency_alerts where alert_type = 'duplicate_booking'$$,
    array[4, 5]::bigint[],
    'correct, without the index: every one beyond the first is recorded'
);
select bag_eq('select entity_id from guard.duplicate_booking', array[4, 5]::bigint[], 'the view finds them');

select guard.set_rule('duplicate_booking', 'observe');
update public.appointments set calcom_v2_booking_id = 'bk_1' where id = 3;
select isnt_empty('select from guard.data_consistency_alerts where entity_id = 3', 'observe: an update is recorded');

select guard.set_rule('duplicate_booking', 'off');
insert into public.appointments (id, company_id, calcom_v2_booking_id) values (6, 1, 'bk_1');
select is_empty('select from guard.data_consistency_alerts where entity_id = 6', 'off: nothing is recorded');

select guard.set_rule('duplicate_booking', 'enforce');
select throws_ok(
    $$insert into public.appointments (id, company_id, calcom_v2_booking_id) values (10, 1, 'bk_1')$$, 'ZG110', null,
    'enforce: refused, also before the index is there'
);
select throws_ok(
    $$insert into public.appointments (id, company_id, calcom_v2_booking_id) values (10, 1, 'bk_9'), (11, 1, 'bk_9')$$,
    'ZG110', null,
    'enforce: also within one statement'
);
insert into public.appointments (id, company_id, calcom_v2_booking_id) values (20, 1, 'bk_20'), (21, 1, 'bk_21');
select throws_ok(
    $$update public.appointments set calcom_v2_booking_id = 'bk_21' where id = 20$$, 'ZG110', null,
    'enforce: the one that was made first takes the id of a later one'
);
select lives_ok(
    $$update public.appointments set status = 'done' where id = 5$$, 'enforce: what was wrong before can be written'
);

select * from finish();
rollback;

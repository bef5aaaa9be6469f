-- The application writes the link status itself: it must say what the appointments say.
begin;
select plan(12);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction) values (1, 1, 'inbound'), (2, 1, 'inbound');
insert into public.appointments (company_id, call_id) values (1, 2);

update public.calls set appointment_link_status = 'linked' where id = 1;
select is(
    (select c.appointment_link_status from public.calls as c where c.id = 1), 'unlinked',
    'correct: linked to nothing is unlinked'
);
update public.calls set appointment_link_status = 'creation_failed' where id = 2;
select is(
    (select c.appointment_link_status from public.calls as c where c.id = 2), 'linked', 'correct: linked stays linked'
);
select results_eq(
    $$select entity_id, metadata #>> '{changes,0,before}', auto_corrected
    from guard.data_consistency_alerts where alert_type = 'inconsistent_link_status' order by 1$$,
    $$values (1::bigint, 'linked', true), (2::bigint, 'creation_failed', true)$$,
    'correct: both are recorded with the value before'
);
insert into public.calls (id, company_id, direction, appointment_link_status) values (3, 1, 'inbound', 'linked');
select is(
    (select c.appointment_link_status from public.calls as c where c.id = 3), 'unlinked', 'correct: an insert too'
);
update public.calls set appointment_link_status = 'creation_failed' where id = 1;
select is(
    (select c.appointment_link_status from public.calls as c where c.id = 1), 'creation_failed',
    'other words for not linked are left alone'
);

select guard.set_rule('inconsistent_link_status', 'observe');
update public.calls set appointment_link_status = 'linked' where id = 1;
select is(
    (select c.appointment_link_status from public.calls as c where c.id = 1), 'linked', 'observe: nothing is changed'
);
select results_eq(
    'select entity_id from guard.inconsistent_link_status', array[1::bigint],
    'observe: the view finds it'
);
delete from public.appointments;
select bag_eq(
    $$select entity_id, metadata ->> 'mode' from guard.data_consistency_alerts
    where alert_type = 'inconsistent_link_status' and not auto_corrected$$,
    $$values (1::bigint, 'observe'), (2::bigint, 'observe')$$,
    'observe: a call that does not follow its appointment is recorded'
);
select results_eq(
    'select appointment_made, appointment_link_status from public.calls where id = 2', $$values (true, 'linked')$$,
    'observe: and is not changed'
);

select guard.set_rule('inconsistent_link_status', 'off');
insert into public.appointments (company_id, call_id) values (1, 3);
select is_empty(
    'select from guard.data_consistency_alerts where entity_id = 3 and not auto_corrected',
    'off: nothing is recorded'
);

select guard.set_rule('inconsistent_link_status', 'enforce');
select throws_ok(
    $$insert into public.calls (id, company_id, direction, appointment_link_status)
    values (9, 1, 'inbound', 'linked')$$, 'ZG106', null, 'enforce: a false link status is refused'
);
insert into public.appointments (company_id, call_id) values (1, 3);
select results_eq(
    'select appointment_made, appointment_link_status from public.calls where id = 3', $$values (true, 'linked')$$,
    'enforce: calls follow their appointments'
);

select * from finish();
rollback;

-- A call that loses its last appointment says so, and is not turned back into a phantom.
begin;
select plan(8);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction) select g, 1, 'inbound' from generate_series(1, 4) as g;
insert into public.appointments (id, company_id, call_id) values (1, 1, 1), (2, 1, 2), (3, 1, 2), (4, 1, 3), (5, 1, 4);

delete from public.appointments where id in (1, 2);
select results_eq(
    $$select id, appointment_made, session_outcome, appointment_link_status, appointment_linked_at is null
    from public.calls where id < 3 order by id$$,
    $$values (1::bigint, false, 'appointment_removed', 'unlinked', true),
    (2, true, 'appointment_booked', 'linked', false)$$,
    'the last one gone: removed; one left: still booked'
);
select is_empty('select from guard.data_consistency_alerts', 'it is no fault');

savepoint s; -- noqa: PRS
create temporary table seen as select c.xmin::text as version from public.calls as c where c.id = 2;
insert into public.appointments (id, company_id, call_id) values (9, 1, 2);
savepoint t; -- noqa: PRS
delete from public.appointments where id = 9;
select isnt_empty(
    'select c.xmin::text from public.calls as c where c.id = 2 except select version from seen',
    'where an appointment remains the call is written too'
);

update public.calls set session_outcome = 'follow_up' where id = 1;
delete from public.appointments where id = 4;
update public.calls set session_outcome = 'appointment_removed' where id = 3;
select results_eq(
    'select session_outcome, appointment_made from public.calls where id in (1, 3) order by id',
    $$values ('follow_up', false), ('appointment_removed', false)$$, 'the application''s own words stay'
);

truncate public.appointments;
select is_empty(
    $$select from public.calls where appointment_made or appointment_link_status = 'linked'$$,
    'TRUNCATE unlinks every call'
);
select is_empty('select from guard.missing_appointment', 'no phantom is left');
select is_empty('select from guard.inconsistent_link_status', 'no link is left');
select lives_ok('delete from public.appointments where false', 'a statement without rows does nothing');

select * from finish();
rollback;

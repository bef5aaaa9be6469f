-- A call that gains an appointment says so.
begin;
select plan(8);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, session_outcome, updated_at)
values (1, 1, 'inbound', null, now() - interval '1 day'), (2, 1, 'inbound', 'abandoned', now() - interval '1 day'),
(3, 1, 'inbound', 'information_only', now() - interval '1 day');

insert into public.appointments (company_id, call_id) values (1, 1), (1, 1), (1, 2), (1, null);
select results_eq(
    $$select id, appointment_made, session_outcome, appointment_link_status, appointment_linked_at, updated_at
    from public.calls where id < 3 order by id$$,
    $$values (1::bigint, true, 'appointment_booked', 'linked', now(), now()),
    (2, true, 'appointment_booked', 'linked', now(), now())$$,
    'made, outcome, link status and linked-at follow'
);
select results_eq(
    'select appointment_made, session_outcome, appointment_link_status from public.calls where id = 3',
    $$values (false, 'information_only', null::text)$$, 'other calls do not'
);
select results_eq(
    $$select entity_id, alert_type, metadata -> 'changes' from guard.data_consistency_alerts$$,
    $$values (2::bigint, 'inconsistent_link_status',
        '[{"column": "session_outcome", "before": "abandoned", "after": "appointment_booked"}]'::jsonb)$$,
    'an outcome that was overwritten is kept in an alert, and nothing else is one'
);
select is_empty('select from guard.pending_checks', 'nothing is left to check');

update public.calls set appointment_linked_at = '2020-01-01' where id = 1;
create temporary table seen as select c.xmin::text as version from public.calls as c where c.id = 1;
select is(
    (select c.appointment_linked_at from public.calls as c where c.id = 1), '2020-01-01',
    'the application may write linked-at'
);
savepoint s; -- noqa: PRS
insert into public.appointments (company_id, call_id) values (1, 1);
select isnt_empty(
    'select c.xmin::text from public.calls as c where c.id = 1 except select version from seen',
    'a call that says so already is written all the same: a session that removes must wait'
);
select is(
    (select c.appointment_linked_at from public.calls as c where c.id = 1), '2020-01-01',
    'and keeps the time it was linked at'
);

select lives_ok(
    $$insert into public.appointments (company_id, call_id) select 1, 1 where false$$,
    'a statement without rows does nothing'
);

select * from finish();
rollback;

-- guard_corrections says what guard did in the last write of a row.
begin;
select plan(10);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, guard_corrections) values (1, 1, '[{"rule": "made up"}]');
select results_eq(
    'select guard_corrections from public.calls',
    $$values ('[{"rule": "missing_direction", "mode": "correct", "column": "direction", "before": null,
        "after": "inbound"}]'::jsonb)$$,
    'the repair is marked on the row; an application cannot write marks of its own'
);
update public.calls set status = 'ended';
select is((select c.guard_corrections from public.calls as c), null, 'the next write starts without marks');
select is((select count(*) from guard.data_consistency_alerts), 1::bigint, 'and does not record them again');

insert into public.calls (id, company_id, session_outcome, appointment_made) values (2, 1, 'abandoned', true);
select bag_eq(
    'select alert_type from guard.data_consistency_alerts where entity_id = 2',
    array['missing_direction', 'appointment_made_mismatch'], 'two repairs in one row are two alerts'
);
select is(
    (select jsonb_array_length(c.guard_corrections) from public.calls as c where c.id = 2), 2, 'and two marks'
);

select guard.set_rule('missing_direction', 'off');
insert into public.calls (id, company_id) values (3, 1);
select results_eq(
    'select guard_corrections from public.calls where id = 3',
    $$values ('[{"rule": "missing_direction", "mode": "pass"}]'::jsonb)$$,
    'a row that was let through is marked, so that its CHECK constraint accepts it'
);

-- a write that skips the triggers meets the constraints
set local session_replication_role = replica;
select throws_ok('insert into public.calls (id, company_id) values (4, 1)', '23514', null, 'missing_direction');
select throws_ok(
    $$insert into public.calls (company_id, direction, session_outcome) values (1, 'inbound', 'appointment_booked')$$,
    '23514', null, 'session_outcome_mismatch'
);
select throws_ok(
    $$insert into public.calls (company_id, direction, customer_id) values (1, 'inbound', 1)$$, '23514', null,
    'inconsistent_customer_link'
);
select throws_ok(
    $$insert into public.appointments (company_id, source) values (1, 'retell_webhook')$$, '23514', null,
    'orphaned_appointment'
);

select * from finish();
rollback;

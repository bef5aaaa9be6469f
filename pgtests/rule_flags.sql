-- Outcome and flag contradict each other: both say booked afterwards, whichever said so.
begin;
select plan(18);

insert into public.companies (id, name) values (1, 'A');

insert into public.calls (id, company_id, direction, session_outcome, appointment_made)
values (1, 1, 'inbound', 'appointment_booked', false), (2, 1, 'inbound', 'abandoned', true),
(3, 1, 'inbound', 'abandoned', false), (4, 1, 'inbound', null, true), (5, 1, 'inbound', 'appointment_booked', true);
select results_eq(
    'select id, session_outcome, appointment_made from public.calls order by id',
    $$values (1::bigint, 'appointment_booked', true), (2, 'appointment_booked', true), (3, 'abandoned', false),
    (4, null, true), (5, 'appointment_booked', true)$$,
    'correct: contradictions become booked, sound rows and an open outcome stay'
);
select results_eq(
    $$select alert_type, entity_id, metadata -> 'changes' -> 0 ->> 'column', metadata -> 'changes' -> 0 -> 'before'
    from guard.data_consistency_alerts order by entity_id$$,
    $$values ('session_outcome_mismatch', 1::bigint, 'appointment_made', 'false'::jsonb),
    ('appointment_made_mismatch', 2::bigint, 'session_outcome', '"abandoned"'::jsonb)$$,
    'correct: each keeps the value before it'
);
select bag_eq(
    'select call_id from guard.pending_checks', array[1, 2, 4, 5]::bigint[],
    'every claim without a link is looked at again after the grace'
);
select cmp_ok(
    (select min(p.due_at) from guard.pending_checks as p), '=', now() + interval '3 seconds',
    'the grace is three seconds'
);

-- with evidence: an appointment exists
insert into public.calls (id, company_id, direction) values (6, 1, 'inbound');
insert into public.appointments (id, company_id, call_id) values (6, 1, 6);
update public.calls set session_outcome = 'abandoned' where id = 6;
select is(
    (select c.session_outcome from public.calls as c where c.id = 6), 'appointment_booked',
    'a booked call cannot become abandoned'
);
update public.calls set session_outcome = 'abandoned', appointment_made = false where id = 6;
select results_eq(
    'select session_outcome, appointment_made, appointment_link_status from public.calls where id = 6',
    $$values ('appointment_booked', true, 'linked')$$,
    'nor can both flags deny an appointment that exists'
);

select guard.set_rule('session_outcome_mismatch', 'observe');
select guard.set_rule('appointment_made_mismatch', 'observe');
insert into public.calls (id, company_id, direction, session_outcome, appointment_made)
values (11, 1, 'inbound', 'appointment_booked', false), (12, 1, 'inbound', 'abandoned', true);
select results_eq(
    'select id, session_outcome, appointment_made from public.calls where id > 10 order by id',
    $$values (11::bigint, 'appointment_booked', false), (12, 'abandoned', true)$$,
    'observe: nothing is changed, although the constraints are in force'
);
select results_eq(
    'select alert_type, entity_id, auto_corrected from guard.data_consistency_alerts where entity_id > 10 order by 2',
    $$values ('session_outcome_mismatch', 11::bigint, false), ('appointment_made_mismatch', 12::bigint, false)$$,
    'observe: both are recorded'
);
select results_eq(
    'select entity_id from guard.session_outcome_mismatch', array[11::bigint], 'the view of session_outcome_mismatch'
);
select results_eq(
    'select entity_id from guard.appointment_made_mismatch', array[12::bigint], 'the view of appointment_made_mismatch'
);
set constraints all immediate; -- no event may be pending on a table that is altered
alter table public.calls alter appointment_made drop not null;
update public.calls set appointment_made = null where id = 11;
select results_eq(
    'select entity_id from guard.session_outcome_mismatch', array[11::bigint], 'a null flag is not true'
);

select guard.set_rule('session_outcome_mismatch', 'off');
select guard.set_rule('appointment_made_mismatch', 'off');
insert into public.calls (id, company_id, direction, session_outcome, appointment_made)
values (13, 1, 'inbound', 'appointment_booked', false), (14, 1, 'inbound', 'abandoned', true);
select is_empty('select from guard.data_consistency_alerts where entity_id > 12', 'off: nothing is recorded');

select guard.set_rule('session_outcome_mismatch', 'enforce');
select guard.set_rule('appointment_made_mismatch', 'enforce');
select throws_ok(
    $$insert into public.calls (id, company_id, direction, session_outcome)
    values (21, 1, 'inbound', 'appointment_booked')$$,
    'ZG101', null, 'enforce: an outcome without the flag is refused'
);
select throws_ok(
    $$insert into public.calls (id, company_id, direction, session_outcome, appointment_made)
    values (22, 1, 'inbound', 'abandoned', true)$$,
    'ZG102', null, 'enforce: a flag with another outcome is refused'
);
select throws_ok(
    'update public.calls set appointment_made = false where id = 5', 'ZG101', null, 'enforce: an update is refused'
);
select lives_ok(
    'update public.calls set status = null where id in (11, 12, 13, 14)',
    'enforce: old contradictions can be written'
);
select is_empty('select from guard.session_outcome_mismatch', 'and are repaired by it (outcome)');
select is_empty('select from guard.appointment_made_mismatch', 'and are repaired by it (flag)');

select * from finish();
rollback;

-- A fault of guard's own never fails a write that it only observes; a correction that cannot be recorded does.
begin;
select plan(9);

insert into public.companies (id, name) values (1, 'A');
set local client_min_messages = error;

alter table guard.data_consistency_alerts rename to mislaid;
select throws_ok(
    'insert into public.calls (id, company_id) values (1, 1)', '42P01', null,
    'correct: without the alert the value before would be lost, so the write fails'
);
select guard.set_rule('missing_direction', 'observe');
select lives_ok('insert into public.calls (id, company_id) values (2, 1)', 'observe: the write goes through');
select lives_ok(
    'insert into public.appointments (company_id, call_id) values (1, 2)', 'a sound write does not notice'
);
select results_eq(
    'select place, errcode from guard.faults', $$values ('record_corrections', '42P01')$$, 'the fault is counted'
);
alter table guard.mislaid rename to data_consistency_alerts;

alter table guard.pending_checks rename to mislaid;
select lives_ok(
    $$insert into public.calls (id, company_id, direction, appointment_made) values (3, 1, 'inbound', true)$$,
    'a claim that cannot be queued goes through'
);
alter table guard.mislaid rename to pending_checks;

alter view guard.tenant_mismatch rename to mislaid;
insert into public.companies (id, name) values (2, 'B');
select lives_ok(
    'insert into public.appointments (company_id, call_id) values (2, 2)',
    'a rule that cannot be asked lets the write through'
);
alter view guard.mislaid rename to tenant_mismatch;

alter table guard.rules rename to mislaid;
select lives_ok(
    $$insert into public.calls (id, company_id, direction, session_outcome)
    values (4, 1, 'inbound', 'booking_failed')$$,
    'without the registry a row that no constraint refuses goes through'
);
select throws_ok(
    'insert into public.calls (id, company_id) values (5, 1)', '23514', null, 'and a constraint in force still holds'
);
alter table guard.mislaid rename to rules;

select results_eq(
    'select distinct place from guard.faults order by 1',
    array['judge_appointments', 'note_claims', 'record_corrections', 'write_mode'], 'every fault is counted'
);

select * from finish();
rollback;

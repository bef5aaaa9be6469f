-- A view that fails stops no other rule, nor one that shows a row twice, or none; and a row without times is found.
begin;
select plan(10);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
select c.*, now() - interval '1 day', now() - interval '1 day'
from (
    values (1, 1, null, null, false), (2, 1, 'inbound', 'appointment_booked', true)
) as c (id, company_id, direction, outcome, made);
set constraints all immediate;
alter table public.calls alter column created_at drop not null, alter column updated_at drop not null;
update public.calls set created_at = null, updated_at = null where id = 1;
update guard.rules set mode = 'observe';

select results_eq(
    $$select rule, found from guard.detect('1000 years') where found > 0 order by 1$$,
    $$values ('missing_appointment', 1::bigint), ('missing_direction', 1)$$, 'a row without times'
);

set local role guard_owner;
create or replace view guard.duplicate_booking as
select
    'duplicate_booking' as rule, 'critical' as severity, 'appointment' as entity_type, g.id as entity_id,
    null::bigint as company_id, now() as occurred_at, '{}'::jsonb as details, g.id as row_id, now() as row_created_at
from unnest(array[7, 7, null, null]::bigint[]) as g (id);
create or replace view guard.missing_direction as
select
    'missing_direction'::text as rule, 'warning'::text as severity, 'call' as entity_type,
    1 / (extract(epoch from now()) * 0)::bigint as entity_id, null::bigint as company_id,
    now() as occurred_at, '{}'::jsonb as details, 1::bigint as row_id;
reset role;
select results_eq(
    $$select rule, found from guard.detect('1000 years') where found is distinct from 0 order by 1$$,
    $$values ('duplicate_booking', 1::bigint), ('missing_appointment', 1), ('missing_direction', null)$$,
    'a row that is shown twice is one'
);
select lives_ok($$select guard.take_baseline('duplicate_booking')$$, 'in the baseline, too');
update guard.rules set mode = 'correct' where enforceable;
insert into guard.pending_checks (call_id, due_at) values (2, now()), (2, now());
select results_eq('select * from guard.judge_pending()', 'values (2, 1)', 'the others are judged');
select is((select appointment_made from public.calls where id = 2), false, 'and repaired');
select results_eq(
    'select rule, examined, is_last, error from guard.reconcile(false) where error is not null',
    $$values ('missing_direction', 0, true, '22012: division by zero')$$, 'reconcile says which rule fails'
);
select is((select count(*)::integer from guard.reconcile(false)), 10, 'and goes through the rest');
select results_eq(
    $$select rule, error from guard.reconcile(false, 'missing_direction')$$,
    $$values ('missing_direction', '22012: division by zero')$$, 'also when it is asked for the one'
);
select results_eq(
    'select rule, marked, error from guard.take_baseline() where error is not null',
    $$values ('missing_direction', null::bigint, '22012: division by zero')$$, 'so does the baseline'
);
select is((select count(marked)::integer from guard.take_baseline()), 9, 'which is taken for the rest');

select * from finish();
rollback;

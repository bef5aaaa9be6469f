-- What a write leaves suspicious is judged after its grace, and repaired where the rule says so.
begin;
select plan(16);

insert into public.companies (id, name) values (1, 'A'), (2, 'B');
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
select i, 1, 'inbound', 'appointment_booked', true, now() - interval '1 minute', now() - interval '1 minute'
from generate_series(1, 3) as i;
select results_eq('select * from guard.judge_pending()', 'values (0, 0)', 'nothing is due before the grace has passed');
select results_eq('select call_id from guard.pending_checks order by 1', array[1, 2, 3]::bigint[], 'three wait');
insert into public.appointments (id, company_id, call_id) values (1, 1, 1);
update guard.rules set mode = 'observe' where rule = 'missing_appointment';
update guard.pending_checks set due_at = now() where call_id < 3;
select results_eq('select * from guard.judge_pending()', 'values (2, 1)', 'one had its appointment, one had not');
select results_eq(
    'select rule, entity_id, status from guard.incidents', $$values ('missing_appointment', 2::bigint, 'open')$$,
    'an incident'
);
select is((select appointment_made from public.calls where id = 2), true, 'at observe nothing is changed');

update guard.rules set mode = 'correct' where rule = 'missing_appointment';
update guard.pending_checks set due_at = now();
select results_eq('select * from guard.judge_pending()', 'values (1, 1)', 'at correct');
select results_eq(
    'select appointment_made, session_outcome from public.calls where id = 3', $$values (false, 'creation_failed')$$,
    'the claim is taken back'
);
select results_eq(
    'select call_id, reason from guard.manual_review_queue', $$values (3::bigint, 'missing_appointment')$$,
    'a person is asked'
);
select results_eq(
    'select status, resolved_by from guard.incidents where entity_id = 3', $$values ('resolved', 'guard')$$,
    'and the incident is over'
);
select is_empty(
    'select from guard.pending_checks where due_at <= now()', 'what was judged does not wait any more'
);

delete from guard.pending_checks;
update guard.rules set mode = 'observe' where rule in ('tenant_mismatch', 'orphaned_appointment');
insert into public.appointments (id, company_id, call_id) values (2, 2, 1);
select results_eq(
    'select call_id, appointment_id from guard.pending_checks', 'values (null::bigint, 2::bigint)',
    'appointments wait too'
);
update guard.pending_checks set due_at = now();
select results_eq('select * from guard.judge_pending()', 'values (1, 1)', 'and are judged');
select results_eq(
    $$select entity_type, entity_id from guard.incidents where rule = 'tenant_mismatch'$$,
    $$values ('appointment', 2::bigint)$$, 'as what they are'
);
insert into guard.pending_checks (call_id, due_at) values (1, now() + interval '3 hours');
select results_eq(
    'select judged from guard.judge_pending()', array[1], 'what a clock noted that was set back does not wait for it'
);
delete from public.appointments where id = 2;
select results_eq('select rule from guard.check_call(1)', array[]::text[], 'the call is sound again');
select throws_ok('select guard.check_call(-1)', 'ZG301', null, 'a call that there is not');

select * from finish();
rollback;

-- Every rule does what its mode says, in every mode, and the probe leaves nothing behind.
begin;
select plan(8);

create temporary table state_before as
select
    (select count(*) from public.calls) as calls,
    (select count(*) from public.companies) as companies,
    (select count(*) from guard.data_consistency_alerts) as alerts,
    (select count(*) from guard.pending_checks) as pending,
    (select last_value from public.calls_id_seq) as last_id;

select is_empty(
    'select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p where p.passed is not true',
    'correct, with the constraints in force'
);
drop index public.guard_duplicate_booking;
alter table public.appointments drop constraint guard_overlapping_appointment;
select is_empty(
    'select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p where p.passed is not true',
    'correct, without the indexes'
);
select count(guard.set_rule(r.rule, 'observe')) from guard.rules as r;
select is_empty(
    'select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p where p.passed is not true',
    'observe'
);
select count(guard.set_rule(r.rule, 'off')) from guard.rules as r;
select is_empty(
    'select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p where p.passed is not true',
    'off'
);
select guard.set_rule('inconsistent_link_status', 'enforce');
select count(guard.set_rule(r.rule, 'enforce')) from guard.rules as r where r.enforceable;
select is_empty(
    'select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p where p.passed is not true',
    'enforce'
);
select count(guard.set_rule(r.rule, 'enforce', 20)) from guard.rules as r where r.enforceable;
select is_empty(
    'select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p where p.passed is not true',
    'enforce for 20 percent'
);

select results_eq(
    $$select (select count(*) from public.calls), (select count(*) from public.companies),
        (select count(*) from guard.data_consistency_alerts), (select count(*) from guard.pending_checks),
        (select last_value from public.calls_id_seq)$$,
    'select * from state_before', 'nothing is left behind, and no sequence has moved'
);

alter table public.calls disable trigger before_update_call_set_direction;
select results_eq(
    $$select p.expected, p.observed, p.passed from guard.probe_rule('missing_direction') as p$$,
    $$values ('refused', 'refused', true)$$, 'a disabled trigger is caught by the constraint'
);

select * from finish();
rollback;

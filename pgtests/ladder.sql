-- Mode and rollout are rows: they take effect with the next statement, without DDL, and are audited.
begin;
select plan(19);

insert into public.companies (id, name) values (1, 'A');

-- rollout by a hash of the call's id
select is(
    (select count(*) from generate_series(1, 10000) as g where guard.in_rollout(g, 0)), 0::bigint,
    '0 percent is nobody'
);
select is(
    (select count(*) from generate_series(1, 10000) as g where guard.in_rollout(g, 100)), 10000::bigint,
    '100 is all'
);
select ok(
    (select count(*) from generate_series(1, 10000) as g where guard.in_rollout(g, 10)) between 850 and 1150,
    '10 percent are about a tenth'
);
select is_empty(
    'select g from generate_series(1, 1000) as g where guard.in_rollout(g, 10) and not guard.in_rollout(g, 50)',
    'who is in at 10 percent is in at 50'
);
select ok(guard.in_rollout(-1, 100) and guard.in_rollout(9223372036854775807, 100), 'any id will do');

select guard.set_rule('missing_direction', 'correct', 30);
insert into public.calls (id, company_id) select g, 1 from generate_series(1, 200) as g;
select is_empty(
    'select c.id from public.calls as c where guard.in_rollout(c.id, 30) <> (c.direction is not null)',
    'correct at 30 percent: exactly those are repaired'
);
select is_empty(
    $$select c.id from public.calls as c
    left join guard.data_consistency_alerts as a on a.entity_id = c.id
    where a.auto_corrected is distinct from guard.in_rollout(c.id, 30)$$,
    'the others get the rung below: they are recorded'
);

select guard.set_rule('missing_direction', 'enforce', 30);
select lives_ok(
    $$insert into public.calls (id, company_id) select g, 1 from generate_series(201, 400) as g
    where not guard.in_rollout(g, 30)$$,
    'enforce at 30 percent: the others are not refused'
);
select is_empty('select from public.calls where id > 200 and direction is null', 'but corrected');
select throws_ok(
    $$insert into public.calls (id, company_id)
    select g, 1 from generate_series(401, 600) as g where guard.in_rollout(g, 30)$$,
    'ZG104', null, 'and those in it are refused'
);
select guard.set_rule('missing_direction', 'observe', 0);
insert into public.calls (id, company_id) values (1001, 1);
select is_empty('select from guard.data_consistency_alerts where entity_id = 1001', 'observe at 0 percent is off');

-- the calls that follow their appointments
select guard.set_rule('inconsistent_link_status', 'correct', 50);
insert into public.appointments (company_id, call_id) select 1, g from generate_series(1, 200) as g;
select is_empty(
    'select c.id from public.calls as c where c.id <= 200 and guard.in_rollout(c.id, 50) <> c.appointment_made',
    'calls follow their appointments inside the rollout'
);
select bag_eq(
    $$select entity_id from guard.data_consistency_alerts where alert_type = 'inconsistent_link_status'$$,
    'select c.id from public.calls as c where c.id <= 200 and not guard.in_rollout(c.id, 50)',
    'and are recorded outside it'
);

-- bad input, and the audit log
select throws_ok($$select guard.set_rule('nope', 'off')$$, 'ZG010', null, 'an unknown rule');
select throws_ok($$select guard.set_rule('missing_direction', 'strict')$$, 'ZG011', null, 'an unknown mode');
select throws_ok($$select guard.set_rule('missing_direction', null)$$, 'ZG011', null, 'no mode');
select throws_ok($$select guard.set_rule('missing_direction', 'off', 101)$$, 'ZG012', null, 'too many percent');
select throws_ok($$select guard.set_rule('missing_direction', 'off', null)$$, 'ZG012', null, 'no percent');
select results_eq(
    $$select actor = session_user, before, after from guard.audit_log
    where object = 'missing_direction' order by id desc limit 1$$,
    $$values (true, '{"mode": "enforce", "rollout_pct": 30}'::jsonb, '{"mode": "observe", "rollout_pct": 0}'::jsonb)$$,
    'every move is audited, with before and after'
);

select * from finish();
rollback;

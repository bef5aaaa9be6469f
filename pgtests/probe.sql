-- Every rule does what its mode says, in every mode, and the probe leaves nothing behind.
begin;
select plan(16);

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

alter table public.calls enable trigger before_update_call_set_direction;

-- What the application's own tables demand of every row.
create type public.guard_test_channel as enum ('web', 'phone');
create table public.guard_test_agents (id smallint primary key);
insert into public.guard_test_agents (id) values (7);
alter table public.calls
add column agent_id smallint not null references public.guard_test_agents (id),
add column channel public.guard_test_channel not null,
add column token varchar(4) not null unique,
add column trace uuid not null,
add column rate numeric(6, 2) not null,
add column payload json not null,
add column tags text[] not null,
add column heard_at timestamp not null;
alter table public.companies drop column name, add column code varchar(2) not null;
alter table public.appointments
alter column starts_at set not null, alter column ends_at set not null, alter column calcom_v2_booking_id set not null,
alter column call_id set not null, add column lasting interval not null,
add check (ends_at > starts_at);
alter table public.appointments alter column id set generated always;
select is_empty(
    'select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p where p.passed is not true',
    'every column that must have a value gets one'
);
select count(guard.set_rule(r.rule, 'observe')) from guard.rules as r;
select results_eq(
    'select p.rule, p.observed, p.passed, p.note
    from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p
    where p.passed is not true or p.note is not null',
    $$values ('orphaned_appointment', 'refused', true, 'the table refuses such rows in every mode: '
        'null value in column "call_id" of relation "appointments" violates not-null constraint')$$,
    'what the table refuses by itself is said'
);

-- A CHECK of an own rule's that no mark satisfies.
insert into public.companies (id, code) values (1, 'A');
insert into public.calls (
    id, company_id, from_number, agent_id, channel, token, trace, rate, payload, tags, heard_at
)
values (1, 1, '+49', 7, 'web', 'x', gen_random_uuid(), 0, '{}', '{}', now());
alter table public.calls add constraint guard_test_own check (from_number like '+%');
select is_empty(
    'select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p where p.passed is not true',
    'is satisfied by what another row has'
);

alter table public.calls add constraint stubborn check (id > 0);
select results_eq(
    $$select p.observed, p.passed, p.errcode, p.note like '%"stubborn"%'
    from guard.probe_rule('missing_direction') as p$$,
    $$values (null::text, null::boolean, '23514', true)$$, 'what keeps a sound row out is told'
);
alter table public.calls drop constraint stubborn;

-- As an operator, who may write the application's tables or not.
create role guard_test_operator nologin;
grant guard_operator to guard_test_operator;
set local role guard_test_operator;
select results_eq(
    'select distinct p.errcode from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p',
    $$values ('42501')$$, 'an operator without rights on the tables cannot probe'
);
reset role;
grant select, insert, update on all tables in schema public to guard_test_operator;
set local role guard_test_operator;
select is_empty(
    'select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p where p.passed is not true',
    'an operator with rights on the tables can'
);
reset role;

select throws_ok(
    $$select guard.probe_insert('nonsense', '[]')$$, '42P01', null, 'a table that is not there'
);
select is_empty('select from public.calls where id < 0', 'nothing is left behind');

select * from finish();
rollback;

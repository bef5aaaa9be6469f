-- Who writes calls and appointments needs no rights on guard's tables; guard's functions are closed to the public.
begin;
select plan(11);

insert into public.companies (id, name) values (1, 'A');
create role guard_test_application nologin;
grant select, insert, update, delete on public.calls, public.appointments to guard_test_application;
grant usage on all sequences in schema public to guard_test_application;
create role guard_test_operator nologin;
grant guard_operator to guard_test_operator;
create role guard_test_reader nologin;
grant guard_reader to guard_test_reader;

set local role guard_test_application;
select lives_ok('insert into public.calls (id, company_id) values (1, 1)', 'a call that is repaired');
select lives_ok(
    'insert into public.appointments (id, company_id, call_id) values (1, 1, 1)',
    'an appointment that is synced'
);
select lives_ok('delete from public.appointments', 'an appointment that goes');
select throws_ok('select from guard.rules', '42501', null, 'guard''s tables are closed');
select throws_ok($$select guard.set_rule('missing_direction', 'off')$$, '42501', null, 'and so are its functions');

set local role guard_test_operator;
select lives_ok($$select guard.set_rule('missing_direction', 'observe')$$, 'an operator moves rules');
select lives_ok('select * from guard.missing_direction', 'and sees what they find');
select is_empty(
    $$select p.* from guard.rules as r cross join lateral guard.probe_rule(r.rule) as p
    where p.note like '%function%'$$,
    'may call what the probe calls'
);
select throws_ok('select from_number from public.calls', '42501', null, 'but no phone numbers');
select throws_ok('delete from guard.audit_log', '42501', null, 'and cannot clear the audit log');

set local role guard_test_reader;
select lives_ok('select * from guard.missing_direction', 'a reader sees what rules find');

select * from finish();
rollback;

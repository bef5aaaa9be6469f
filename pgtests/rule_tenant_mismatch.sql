-- An appointment and its call belong to different companies.
begin;
select plan(9);

insert into public.companies (id, name) values (1, 'A'), (2, 'B');
insert into public.calls (id, company_id, direction) values (1, 1, 'inbound'), (2, 1, 'inbound'), (3, 1, 'inbound');

insert into public.appointments (id, company_id, call_id) values (1, 2, 1), (2, 1, 2);
select results_eq(
    $$select entity_type, entity_id, company_id, auto_corrected from guard.data_consistency_alerts
    where alert_type = 'tenant_mismatch'$$,
    $$values ('appointment', 1::bigint, 2::bigint, false)$$, 'correct: it is recorded, since nothing can be repaired'
);
select results_eq('select entity_id from guard.tenant_mismatch', array[1::bigint], 'the view finds it');

update public.calls set company_id = 2 where id = 2;
select isnt_empty(
    'select from guard.data_consistency_alerts where entity_id = 2', 'a call that changes its company is recorded'
);
update public.appointments set status = 'confirmed' where id = 1;
select is((select count(*) from guard.data_consistency_alerts), 2::bigint, 'another update does not record it again');

select guard.set_rule('tenant_mismatch', 'off');
insert into public.appointments (id, company_id, call_id) values (3, 2, 3);
select is_empty('select from guard.data_consistency_alerts where entity_id = 3', 'off: nothing is recorded');

select guard.set_rule('tenant_mismatch', 'enforce');
select throws_ok(
    'insert into public.appointments (id, company_id, call_id) values (4, 2, 3)', 'ZG109', null,
    'enforce: an insert is refused'
);
insert into public.appointments (id, company_id, call_id) values (4, 1, 3);
select throws_ok(
    'update public.appointments set company_id = 2 where id = 4', 'ZG109', null,
    'enforce: a change of company'
);
select throws_ok('update public.calls set company_id = 2 where id = 3', 'ZG109', null, 'enforce: on either side');
select lives_ok(
    $$update public.appointments set status = 'done' where id = 1$$, 'enforce: what was wrong before can be written'
);

select * from finish();
rollback;

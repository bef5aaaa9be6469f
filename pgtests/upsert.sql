-- INSERT ... ON CONFLICT DO UPDATE: what is judged is the row that is written, not the one that was proposed.
begin;
select plan(6);

insert into public.companies (id, name) values (1, 'A');
insert into public.customers (id, company_id) values (1, 1);
insert into public.calls (
    id, company_id, retell_call_id, direction, customer_id, customer_link_status, customer_link_method,
    customer_link_confidence
)
values (1, 1, 'r1', 'outbound', 1, 'linked', 'manual', 80);

insert into public.calls (company_id, retell_call_id, status, customer_id) values (1, 'r1', 'ended', 1)
on conflict (retell_call_id) do update set
    status = excluded.status,
    direction = coalesce(excluded.direction, public.calls.direction),
    customer_link_method = coalesce(excluded.customer_link_method, public.calls.customer_link_method);
select results_eq(
    'select status, direction, customer_link_method from public.calls',
    $$values ('ended', 'outbound', 'manual')$$, 'what the application did not propose is not made up for it'
);
select is_empty('select from guard.data_consistency_alerts', 'and nothing is recorded');

insert into public.calls (company_id, retell_call_id) values (1, 'r1')
on conflict (retell_call_id) do update set direction = excluded.direction;
select is((select c.direction from public.calls as c), 'inbound', 'what it writes wrong is repaired');
select is((select count(*) from guard.data_consistency_alerts), 1::bigint, 'and recorded');

select guard.set_rule('missing_direction', 'enforce');
select lives_ok(
    $$insert into public.calls (company_id, retell_call_id, status) values (1, 'r1', 'analysed')
    on conflict (retell_call_id) do update set status = excluded.status$$,
    'enforce: an upsert of another column is not refused'
);
select throws_ok(
    $$insert into public.calls (company_id, retell_call_id) values (1, 'r1')
    on conflict (retell_call_id) do update set direction = excluded.direction$$,
    'ZG104', null, 'enforce: one that breaks the row is'
);

select * from finish();
rollback;

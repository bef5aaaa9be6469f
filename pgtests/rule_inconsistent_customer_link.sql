-- A customer is set, but how the link was made is not.
begin;
select plan(7);

insert into public.companies (id, name) values (1, 'A');
insert into public.customers (id, company_id) values (1, 1);
insert into public.calls (id, company_id, direction, customer_id) values (1, 1, 'inbound', 1);
insert into public.calls (id, company_id, direction, customer_id, customer_link_method, customer_link_confidence)
values (2, 1, 'inbound', 1, 'manual', 80);
select results_eq(
    'select id, customer_link_status, customer_link_method, customer_link_confidence from public.calls order by id',
    $$values (1::bigint, 'linked', 'phone_match', 100.00), (2, 'linked', 'manual', 80.00)$$,
    'correct: what is null is filled in, what the application wrote stays'
);
select results_eq(
    $$select entity_id, jsonb_path_query_array(metadata, '$.changes[*].column')
    from guard.data_consistency_alerts order by 1$$,
    $$values
    (1::bigint, '["customer_link_status", "customer_link_method", "customer_link_confidence"]'::jsonb),
    (2::bigint, '["customer_link_status"]'::jsonb)$$,
    'correct: one alert a call, naming the columns'
);
update public.calls set customer_link_confidence = null where id = 2;
select is((select c.customer_link_confidence from public.calls as c where c.id = 2), 100.00, 'correct: an update too');

select guard.set_rule('inconsistent_customer_link', 'observe');
insert into public.calls (id, company_id, direction, customer_id) values (3, 1, 'inbound', 1);
select results_eq(
    'select entity_id from guard.inconsistent_customer_link', array[3::bigint],
    'observe: it stands, the view finds it'
);
select ok(
    exists (select from guard.data_consistency_alerts as a where a.entity_id = 3 and not a.auto_corrected),
    'observe: it is recorded'
);

select guard.set_rule('inconsistent_customer_link', 'off');
insert into public.calls (id, company_id, direction, customer_id) values (4, 1, 'inbound', 1);
select is_empty('select from guard.data_consistency_alerts where entity_id = 4', 'off: nothing is recorded');

select guard.set_rule('inconsistent_customer_link', 'enforce');
select throws_ok(
    $$insert into public.calls (id, company_id, direction, customer_id) values (9, 1, 'inbound', 1)$$, 'ZG107', null,
    'enforce: refused'
);

select * from finish();
rollback;

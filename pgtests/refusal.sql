-- A refusal says what, why and what to do, and names ids only.
begin;
select plan(9);

insert into public.companies (id, name) values (1, 'A');
select guard.set_rule('missing_direction', 'enforce');
create temporary table refusal (
    errcode text, message text, detail text, hint text, relation text, constraint_name text
);
do $$
declare
    v_refusal refusal;
begin
    insert into public.calls (id, company_id, from_number, to_number) values (7, 1, '+4915112345678', '+493012345678');
exception
    when others then
        get stacked diagnostics
            v_refusal.errcode = returned_sqlstate,
            v_refusal.message = message_text,
            v_refusal.detail = pg_exception_detail,
            v_refusal.hint = pg_exception_hint,
            v_refusal.relation = table_name,
            v_refusal.constraint_name = constraint_name;
        insert into refusal select v_refusal.*;
end
$$;
select is((select r.errcode from refusal as r), 'ZG104', 'an SQLSTATE of its own');
select isnt((select r.message from refusal as r), '', 'a message');
select ok((select r.detail from refusal as r) like '%7%', 'a detail that names the row');
select ok((select r.hint from refusal as r) <> '', 'a hint');
select is((select r.relation from refusal as r), 'calls', 'the table');
select is((select r.constraint_name from refusal as r), 'guard_missing_direction', 'the rule, as a constraint');
select ok((select r::text from refusal as r) !~ '\d{6}', 'and no phone number');
select is_empty('select from public.calls', 'nothing was written');
select results_eq(
    'select count(distinct errcode), count(*) from guard.rules', 'values (11::bigint, 11::bigint)',
    'every rule has its own SQLSTATE'
);

select * from finish();
rollback;

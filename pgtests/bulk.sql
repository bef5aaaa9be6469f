-- One statement of many rows: side effects once per statement.
begin;
select plan(6);

insert into public.companies (id, name) values (1, 'A');
create temporary table statements (relation text, event text);
create function pg_temp.count_statement() returns trigger language plpgsql as $$
begin
    insert into pg_temp.statements values (tg_table_name, tg_op);
    return null;
end
$$;
create trigger count_calls after update on public.calls for each statement execute function pg_temp.count_statement();
create trigger count_alerts after insert on guard.data_consistency_alerts
for each statement execute function pg_temp.count_statement();
grant all on pg_temp.statements to public;

insert into public.calls (id, company_id, direction) select g, 1, 'inbound' from generate_series(1, 500) as g;
select is_empty('select from statements', 'sound calls: no further statement');

insert into public.appointments (company_id, call_id) select 1, 1 + g % 500 from generate_series(1, 1000) as g;
select results_eq(
    'select relation, event from statements', $$values ('calls', 'UPDATE')$$,
    'appointments: one UPDATE of the calls'
);
delete from statements;

delete from public.appointments where id % 2 = 0;
select results_eq(
    'select relation, event from statements', $$values ('calls', 'UPDATE')$$,
    'deleting: one UPDATE of the calls'
);
delete from statements;

insert into public.calls (id, company_id) select g, 1 from generate_series(1001, 1500) as g;
select results_eq(
    'select relation, event from statements', $$values ('data_consistency_alerts', 'INSERT')$$,
    'defective calls: one INSERT of alerts'
);
select is((select count(*) from guard.data_consistency_alerts), 500::bigint, 'one alert each');
select is_empty('select from public.calls where direction is null', 'all repaired');

select * from finish();
rollback;

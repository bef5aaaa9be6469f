-- What a session can make cannot be run with the rights of guard's definer functions.
begin;
select plan(3);

insert into public.companies (id, name) values (1, 'A');
create role guard_test_writer nologin;
grant select, insert, update on public.calls, public.appointments to guard_test_writer;
grant usage on all sequences in schema public to guard_test_writer;

set local role guard_test_writer;
create temporary table witness (name text);
create function pg_temp.witnessed(p_value pg_catalog.text) returns boolean language plpgsql as $$
begin
    if current_user = 'guard_owner' then
        raise exception 'hijacked';
    end if;
    return true;
end
$$;
create domain pg_temp.text as pg_catalog.text check (pg_temp.witnessed(value));
create temporary table rules (rule pg_catalog.text);
create temporary table new_rows (id bigint);
create temporary table calls (id bigint);
select lives_ok(
    'insert into public.calls (id, company_id) values (1, 1)', 'types and tables of the session are not looked at'
);
select lives_ok('insert into public.appointments (company_id, call_id) values (1, 1)', 'nor when calls follow');
reset role;
select is((select c.appointment_made from public.calls as c where c.id = 1), true, 'the call follows');

select * from finish();
rollback;

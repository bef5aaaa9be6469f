-- With row-level security a writer sees fewer rows than exist; guard sees them all.
begin;
select plan(3);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction) values (1, 1, 'inbound'), (2, 1, 'inbound');
insert into public.appointments (id, company_id, call_id) values (1, 1, 1), (2, 1, 1), (3, 1, 2);

create role guard_test_tenant nologin;
grant select, insert, update, delete on public.calls, public.appointments to guard_test_tenant;
alter table public.calls enable row level security;
alter table public.appointments enable row level security;
create policy only_appointments on public.appointments to guard_test_tenant using (id <> 2);

set local role guard_test_tenant;
delete from public.appointments where id = 1;
delete from public.appointments where id = 3;
select is_empty('select from public.calls', 'the writer sees no call');
reset role;
select is(
    (select c.appointment_made from public.calls as c where c.id = 1), true,
    'an appointment that the writer cannot see still counts'
);
select is(
    (select c.appointment_made from public.calls as c where c.id = 2), false,
    'and a call that it cannot see follows'
);

select * from finish();
rollback;

-- A phone number that a trigger of the application's changes beneath a repair gets into no alert.
begin;
select plan(2);

create function public.guard_test_dial() returns trigger language plpgsql as $$
begin
    new.from_number := '+49' || ltrim(new.from_number, '0');
    return new;
end
$$;
create trigger guard_test_dial before update on public.calls for each row execute function public.guard_test_dial();
insert into public.companies (id, name) values (1, 'A');
insert into public.calls (
    id, company_id, direction, from_number, session_outcome, appointment_made, created_at, updated_at
)
values (
    1, 1, 'inbound', '01512345678', 'appointment_booked', true, now() - interval '1 hour', now() - interval '1 hour'
);

select is((select sum(repaired)::integer from guard.reconcile(false)), 1, 'a repair');
select is_empty(
    $$select from guard.data_consistency_alerts where metadata::text like '%1512345678%'$$, 'without the number'
);

select * from finish();
rollback;

-- What a deferred constraint of the application's would refuse at COMMIT keeps no other row from being repaired.
begin;
select plan(4);

create function public.guard_test_refuse() returns trigger language plpgsql as $$
begin
    if new.id = 2 and new.session_outcome = 'creation_failed' then
        raise exception 'not this one';
    end if;
    return null;
end
$$;
insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
select i, 1, 'inbound', 'appointment_booked', true, now() - interval '1 hour', now() - interval '1 hour'
from generate_series(1, 3) as i;
set constraints all immediate;
set constraints all deferred;
create constraint trigger guard_test_refuse after update on public.calls
deferrable initially deferred for each row execute function public.guard_test_refuse();

update guard.pending_checks set due_at = now();
select results_eq('select * from guard.judge_pending()', 'values (3, 3)', 'three are judged');
select results_eq(
    'select id, appointment_made from public.calls order by id', 'values (1::bigint, false), (2, true), (3, false)',
    'two are repaired'
);
select lives_ok('set constraints all immediate', 'COMMIT has nothing against it');
select is(
    (select context ->> 'error' from guard.manual_review_queue where call_id = 2), 'P0001: not this one',
    'and a person is told why'
);

select * from finish();
rollback;

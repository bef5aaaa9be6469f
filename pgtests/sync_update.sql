-- Moving an appointment is losing it here and gaining it there.
begin;
select plan(7);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, session_outcome)
select g, 1, 'inbound', case when g = 2 then 'abandoned' end from generate_series(1, 4) as g;
insert into public.appointments (id, company_id, call_id) values (1, 1, 1), (3, 1, 3), (4, 1, 4);

update public.appointments set call_id = 2 where id = 1;
select results_eq(
    'select id, appointment_made, session_outcome, appointment_link_status from public.calls where id < 3 order by id',
    $$values (1::bigint, false, 'appointment_removed', 'unlinked'), (2, true, 'appointment_booked', 'linked')$$,
    'moved from one call to another'
);
select results_eq(
    $$select entity_id, metadata #>> '{changes,0,before}' from guard.data_consistency_alerts$$,
    $$values (2::bigint, 'abandoned')$$, 'the outcome that was overwritten is kept'
);

update public.appointments set call_id = null where id = 1;
select results_eq(
    'select appointment_made, session_outcome, appointment_link_status from public.calls where id = 2',
    $$values (false, 'appointment_removed', 'unlinked')$$, 'unlinked'
);
update public.appointments set call_id = 1 where id = 1;
select results_eq(
    'select appointment_made, session_outcome, appointment_link_status from public.calls where id = 1',
    $$values (true, 'appointment_booked', 'linked')$$, 'linked again'
);

update public.appointments as a set call_id = b.call_id
from public.appointments as b where (a.id, b.id) in ((3, 4), (4, 3));
select is_empty(
    'select from public.calls where id in (3, 4) and appointment_made is not true',
    'two that swap their calls both stay booked'
);

savepoint s; -- noqa: PRS
create temporary table seen as select c.id, c.xmin::text as version from public.calls as c;
update public.appointments set status = 'confirmed';
select is_empty(
    'select c.id, c.xmin::text from public.calls as c except select id, version from seen',
    'an update of another column does not touch the calls'
);

insert into public.appointments (id, company_id, call_id) values (1, 1, 2)
on conflict (id) do update set call_id = excluded.call_id;
select results_eq(
    'select id, appointment_made from public.calls where id < 3 order by id', $$values (1::bigint, false), (2, true)$$,
    'an upsert moves it too'
);

select * from finish();
rollback;

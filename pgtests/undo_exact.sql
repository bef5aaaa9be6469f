-- What is undone is as it was before the repairs: what somebody wrote between two of them, a moment that another time
-- zone prints otherwise, a value that a constraint of guard's would refuse.
begin;
select plan(9);

alter table public.calls add column is_made boolean generated always as (appointment_made) stored;
insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (
    id, company_id, direction, session_outcome, appointment_made, appointment_link_status, booking_id, created_at,
    updated_at
)
select c.*, now() - interval '1 day', now() - interval '1 day'
from (
    values
    (1, 1, null, null, false, null, null),
    (2, 1, 'inbound', 'abandoned', true, 'linked', null),
    (3, 1, 'inbound', 'callback', false, null, null),
    (4, 1, 'inbound', null, false, 'linked', null),
    (5, 1, 'inbound', 'appointment_booked', true, 'linked', 'bk_5')
) as c (id, company_id, direction, outcome, made, link, booking_id);
update public.calls set appointment_linked_at = now() where id = 5;
insert into public.appointments (id, company_id, call_id, source, calcom_v2_booking_id)
values (2, 1, 2, null, null), (3, 1, 3, null, null), (5, 1, null, 'retell_webhook', 'bk_5');
create temporary table before as
select c.id, to_jsonb(c) - '{updated_at,guard_corrections}'::text[] as content from public.calls as c;

set local timezone = 'Asia/Kolkata';
update guard.rules set mode = 'correct' where enforceable;
select is((select sum(repaired)::integer from guard.reconcile(false)), 5, 'five repairs');
update guard.rules set mode = 'observe';
update public.calls set session_outcome = 'voicemail' where id = 2;
update guard.rules set mode = 'correct' where rule = 'appointment_made_mismatch';
select is((select sum(repaired)::integer from guard.reconcile(false)), 1, 'one is repaired again');

set local timezone = 'UTC';
update guard.rules set mode = case rule when 'inconsistent_link_status' then 'correct' else 'observe' end;
select throws_ok(
    $$select guard.undo(now() - interval '1 hour')$$, 'ZG406', null, 'not while calls would follow their appointments'
);
update guard.rules set mode = 'observe';
select is(
    (select sum(skipped)::integer from guard.undo(now() - interval '1 hour')), 0, 'no value was changed since'
);

select is((select session_outcome from public.calls where id = 2), 'voicemail', 'what was written in between stays');
select results_eq(
    $$select id, to_jsonb(c) - '{updated_at,guard_corrections}'::text[] from public.calls as c
    where id <> 2 order by 1$$,
    'select id, content from before where id <> 2 order by 1', 'all else is as it was'
);
select is((select call_id from public.appointments where id = 5), null, 'an appointment too');
select is_empty(
    $$select from guard.data_consistency_alerts where metadata ->> 'by' = 'undo'$$, 'undoing is no correction'
);
select is_empty(
    $$select from public.calls as c cross join lateral jsonb_array_elements(c.guard_corrections) as m
    where m ->> 'mode' = 'correct' and c.id <> 2$$,
    'and no row says that it was corrected'
);

select * from finish();
rollback;

-- A person is asked about a defect once, also where the application's own trigger keeps updated_at.
begin;
select plan(11);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (id, company_id, direction, booking_id, session_outcome, appointment_made)
values (1, 1, 'inbound', 'bk_1', null, false), (2, 1, 'inbound', null, 'appointment_booked', true);
insert into public.appointments (id, company_id, source, calcom_v2_booking_id)
values (1, 1, 'retell_webhook', 'bk_1'), (2, 1, 'retell_webhook', 'bk_2');
update public.calls set created_at = now() - interval '1 day', updated_at = now() - interval '1 day';
update public.appointments set created_at = now() - interval '1 day', updated_at = now() - interval '1 day';
create function public.guard_test_touch() returns trigger language plpgsql as $$
begin
    new.updated_at := clock_timestamp();
    return new;
end
$$;
create trigger guard_test_touch before update on public.appointments
for each row execute function public.guard_test_touch();
update guard.rules set mode = 'correct' where rule in ('orphaned_appointment', 'missing_appointment');
create temporary view answered as select guard.resolve_review(q.id, 'done') as item
from guard.manual_review_queue as q where q.status <> 'resolved';
create temporary view asked as select r.queued from guard.reconcile(false, 'orphaned_appointment') as r;

select results_eq(
    $$select repaired, queued from guard.reconcile(false, 'orphaned_appointment')$$, 'values (1, 1)',
    'one is linked, one is for a person'
);
select ok(
    (select a.updated_at < now() from public.appointments as a where a.id = 2), 'what cannot be linked is not written'
);
select is((select count(item)::integer from answered), 1, 'the person answers');
update public.appointments set status = 'confirmed' where id = 2;
select results_eq('select queued from asked', array[0], 'being written is no new defect');

select lives_ok($$select guard.detect('1 week')$$, 'found for the first time');
update guard.manual_review_queue set resolved_at = now() - interval '1 hour';
select results_eq('select queued from asked', array[0], 'nor is being found');
update guard.incidents
set status = 'resolved', resolved_at = now(), resolved_by = 'guard', created_at = now() - interval '1 day';
select lives_ok($$select guard.detect('1 week')$$, 'it was gone, and is there again');
select results_eq('select queued from asked', array[1], 'that is asked');
select is((select count(item)::integer from answered), 1, 'and answered');
update public.appointments set calcom_v2_booking_id = 'bk_3' where id = 2;
select results_eq('select queued from asked', array[1], 'other values are another defect');

select guard.reconcile(false, 'missing_appointment');
select count(*) from answered;
update public.calls
set
    session_outcome = 'appointment_booked', appointment_made = true, appointment_link_status = null,
    updated_at = now() - interval '1 hour'
where id = 2;
select results_eq(
    $$select repaired, queued from guard.reconcile(false, 'missing_appointment')$$, 'values (1, 1)',
    'what was taken back and is claimed again is asked again'
);

select * from finish();
rollback;

-- Webhooks that come between the steps of the process that booked.
begin;
select plan(6);

insert into public.companies (id, name) values (1, 'A');
insert into public.staff (id, company_id, name) values (1, 1, 'S');
insert into public.services (id, company_id, name) values (1, 1, 'S');
insert into public.customers (id, company_id, name) values (1, 1, 'C');
insert into public.calls (id, company_id, direction) select g, 1, 'inbound' from generate_series(1, 9) as g;

-- the webhook is faster
select guard.begin_booking(
    'k8', 8, '{"staff_id": 1, "service_id": 1, "customer_id": 1, "starts_at": "2030-01-08 09:00+00"}'
);
select guard.handle_booking_event('{"triggerEvent": "BOOKING_CREATED", "payload": {
    "uid": "bk_8", "startTime": "2030-01-08T09:00:00Z", "metadata": {"call_id": 8}}}');
select guard.mark_remote_booked('k8', 'bk_8');
select guard.record_booking('k8', '{}');
select guard.begin_booking('k9', 9, '{"staff_id": 1, "service_id": 1, "customer_id": 1}');
select guard.mark_remote_booked('k9', 'bk_9');
select guard.handle_booking_event('{"triggerEvent": "BOOKING_CREATED", "payload": {
    "uid": "bk_9", "startTime": "2030-01-09T09:00:00Z"}}');
select results_eq(
    $$select calcom_v2_booking_id, call_id, customer_id, service_id, staff_id, starts_at from public.appointments
    where call_id in (8, 9) order by 1$$,
    $$values ('bk_8', 8::bigint, 1::bigint, 1::bigint, 1::bigint, timestamptz '2030-01-08 09:00+00'),
    ('bk_9', 9, 1, 1, 1, timestamptz '2030-01-09 09:00+00')$$, 'customer, service and staff are the request''s'
);
select is((select i.state from guard.record_booking('k9', '{}') as i), 'recorded', 'it is adopted');
select guard.handle_booking_event('{"triggerEvent": "BOOKING_RESCHEDULED", "payload": {
    "uid": "bk_9b", "rescheduleUid": "bk_9", "startTime": "2030-01-10T09:00:00Z"}}');
select is(
    (select i.booking_id from guard.mark_remote_booked('k9', 'bk_9') as i), 'bk_9b', 'said again after a move: once'
);

-- cancelled between mark and record
select guard.begin_booking('k10', 1, '{}');
select guard.mark_remote_booked('k10', 'bk_10');
select guard.handle_booking_event('{"triggerEvent": "BOOKING_CANCELLED", "payload": {"uid": "bk_10"}}');
select is((select i.state from guard.record_booking('k10', '{}') as i), 'compensated', 'nothing is left to record');
select is(
    (select v.reason from guard.validate_appointment(1, null, 'bk_10') as v), 'appointment_cancelled', 'nor to validate'
);
-- cancelled before its intent was marked; the process died
select guard.begin_booking('k11', 1, '{}');
select guard.handle_booking_event('{"triggerEvent": "BOOKING_CANCELLED", "payload": {"uid": "bk_11"}}');
select guard.mark_remote_booked('k11', 'bk_11');
select results_eq(
    $$select key, state, action from guard.recover_intents('0 seconds') where key = 'k11'$$,
    $$values ('k11', 'compensated', 'compensated')$$, 'recovery finds that it was cancelled'
);

select * from finish();
rollback;

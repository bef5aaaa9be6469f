-- A booking that failed and comes about after all: the call says so, and nobody is asked any more; but nothing closes an
-- item while the calendar may hold a booking that no appointment records.
begin;
select plan(39);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction) select g, 1, 'inbound' from generate_series(1, 14) as g;

create function pg_temp.book(p_key text, p_call_id bigint, p_booking_id text) returns boolean
language sql
begin atomic
    select guard.begin_booking(p_key, p_call_id, '{}');
    select guard.mark_remote_booked(p_key, p_booking_id);
    select guard.record_booking(p_key, '{}');
    select (guard.validate_booking(p_key)).success;
end;

create temporary view failures as
select
    c.id as call_id,
    c.booking_failed,
    c.booking_failure_reason,
    c.requires_manual_processing,
    (select string_agg(q.status, ' ' order by q.id) from guard.manual_review_queue as q where q.call_id = c.id) as items
from public.calls as c;

-- refused, then booked with another key
select guard.begin_booking('a1', 1, '{}');
select guard.fail_booking('a1', 'calcom_booking_failed', 'HTTPError');
select results_eq(
    'select * from failures where call_id = 1',
    $$values (1::bigint, true, 'calcom_booking_failed', true, 'pending')$$, 'it failed, and a person is asked'
);
select results_eq(
    $$select q.context ->> 'key', q.context ->> 'cause', q.context ->> 'intent_id' = i.id::text, q.context ? 'question',
        i.failure_reason
    from guard.manual_review_queue as q inner join guard.booking_intents as i on q.call_id = i.call_id$$,
    $$values ('a1', 'HTTPError', true, false, 'HTTPError')$$, 'and told which booking, and why'
);
select ok(pg_temp.book('a2', 1, 'A2'), 'another attempt succeeds');
select results_eq(
    'select * from failures where call_id = 1',
    $$values (1::bigint, false, null::text, false, 'resolved')$$, 'nothing is left to decide'
);
select results_eq(
    $$select value_before, column_name from guard_bi.corrections where entity_id = 1 and rule = 'failure_cleared'
    order by 2$$,
    $$values ('true', 'booking_failed'), ('calcom_booking_failed', 'booking_failure_reason'),
    ('true', 'requires_manual_processing')$$, 'what the call said is kept'
);
select is_empty(
    $$select from guard.data_consistency_alerts where alert_type = 'failure_cleared' and entity_id <> 1$$,
    'and only where it said so'
);

-- nobody knows what became of the first key
select guard.begin_booking('b1', 2, '{}');
select guard.recover_intents('0 seconds');
select isnt_empty(
    $$select from guard.manual_review_queue where call_id = 2 and context ? 'question' and context ->> 'key' = 'b1'$$,
    'a person looks in the calendar'
);
select ok(pg_temp.book('b2', 2, 'B2'), 'another attempt succeeds');
select results_eq(
    'select * from failures where call_id = 2',
    $$values (2::bigint, false, null::text, true, 'pending')$$,
    'the call is booked, and a person must still look for the first one'
);
select results_eq('select resolved from guard.process_review_queue()', 'values (0)', 'the job does not close it');
select guard.mark_remote_booked('b1', 'B1');
select results_eq('select resolved from guard.process_review_queue()', 'values (0)', 'nor when the answer comes');
select guard.recover_intents('0 seconds');
select results_eq(
    'select * from failures where call_id = 2',
    $$values (2::bigint, false, null::text, false, 'resolved')$$, 'only when it is recorded'
);

-- a late success
select guard.begin_booking('c1', 3, '{}');
select guard.recover_intents('0 seconds');
select guard.mark_remote_booked('c1', 'C1');
select guard.recover_intents('0 seconds');
select results_eq(
    'select * from failures where call_id = 3',
    $$values (3::bigint, false, null::text, false, 'resolved')$$, 'the flags are cleared'
);

-- what the calendar holds and cannot be recorded
select guard.begin_booking('d1', 4, '{"staff_id": 999}');
select guard.mark_remote_booked('d1', 'D1');
select guard.recover_intents('0 seconds');
select ok(pg_temp.book('d2', 4, 'D2'), 'another attempt succeeds');
select results_eq('select resolved from guard.process_review_queue()', 'values (0)', 'the first is still asked about');
select guard.handle_booking_event('{"triggerEvent": "BOOKING_CANCELLED", "createdAt": "2030-01-01T00:00:00Z",
    "payload": {"uid": "D1"}}');
select results_eq('select resolved from guard.process_review_queue()', 'values (1)', 'until it is cancelled');
select is(
    (select f.state from guard.fail_booking('d1', 'x') as f), 'compensated', 'what was cancelled need not be given up'
);

-- a person is at it
select guard.begin_booking('e1', 5, '{}');
select guard.fail_booking('e1', 'calcom_booking_failed', 'circuit_open');
select guard.take_review('ann');
select ok(pg_temp.book('e2', 5, 'E2'), 'it is booked meanwhile');
select results_eq(
    'select * from failures where call_id = 5',
    $$values (5::bigint, false, null::text, true, 'in_progress')$$, 'nobody takes the item from them'
);
select guard.resolve_review(q.id, 'told the customer') from guard.manual_review_queue as q where q.call_id = 5;
select results_eq(
    'select requires_manual_processing, items from failures where call_id = 5', $$values (false, 'resolved')$$,
    'until they are done'
);

-- a failure after a resolved item
select guard.begin_booking('f1', 6, '{}');
select guard.begin_booking('f2', 6, '{"n": 2}');
select guard.begin_booking('f3', 6, '{"n": 3}');
select guard.fail_booking('f1', 'calcom_booking_failed', 'circuit_open');
select guard.fail_booking('f2', 'calcom_booking_failed', 'circuit_open');
select results_eq(
    $$select distinct jsonb_path_query(context, 'lax $.**.key') #>> '{}' from guard.manual_review_queue
    where call_id = 6 order by 1$$,
    $$values ('f1'), ('f2')$$, 'two failures are one item that names both'
);
select guard.resolve_review(q.id, 'called back') from guard.manual_review_queue as q where q.call_id = 6;
select results_eq(
    'select booking_failed, requires_manual_processing, items from failures where call_id = 6',
    $$values (true, false, 'resolved')$$, 'a person has seen to it: it failed, and needs nobody'
);
select guard.fail_booking('f3', 'calcom_booking_failed', 'circuit_open');
select results_eq(
    'select booking_failed, requires_manual_processing, items from failures where call_id = 6',
    $$values (true, true, 'resolved pending')$$, 'a new failure is asked about anew'
);
update guard.manual_review_queue
set status = 'resolved', resolution = 'ok', resolved_at = now()
where call_id = 6 and status = 'pending';
select ok(guard.rollback_booking(6, 'calcom_booking_failed'), 'also where the flags say it already');
select is(
    (select f.items from failures as f where f.call_id = 6), 'resolved resolved pending', 'as nobody is asked'
);

-- the appointment is written by somebody else
insert into public.appointments (company_id, call_id) values (1, 6);
select results_eq('select resolved from guard.process_review_queue()', 'values (1)', 'the hourly job sees it');
select results_eq(
    'select booking_failed, booking_failure_reason, requires_manual_processing from failures where call_id = 6',
    $$values (false, null::text, false)$$, 'and the call says so'
);

-- what only a person can answer
select guard.queue_review(7, 'calcom_booking_failed', '{"question": "is it in the calendar?"}');
select pg_temp.book('g1', 7, 'G1');
select guard.queue_review(7, 'calcom_booking_failed', '{"question": "really?"}');
select results_eq('select resolved from guard.process_review_queue()', 'values (0)', 'is asked until a person answers');
select guard.begin_booking('m1', 14, '{}');
select guard.fail_booking('m1', 'calcom_booking_failed', 'HTTPError');
select guard.queue_review(14, 'calcom_booking_failed', '{"question": "two seats? call back"}');
select ok(pg_temp.book('m2', 14, 'M2'), 'another attempt succeeds');
select is((select f.items from failures as f where f.call_id = 14), 'pending', 'a question beside an intent stays');

-- what the calendar holds and was cancelled here
create function pg_temp.event(p_trigger text, p_uid text, p_time integer) returns void language sql as $$
    select guard.handle_booking_event(jsonb_build_object(
        'triggerEvent', p_trigger, 'time', p_time, 'payload', jsonb_build_object('uid', p_uid)
    ))
$$;
update public.calls set booking_id = 'H1' where id = 8;
select pg_temp.event('BOOKING_CREATED', 'H1', 1);
select guard.begin_booking('i1', 9, '{}');
select guard.mark_remote_booked('i1', 'I1');
select guard.record_booking('i1', '{}');
update public.appointments set status = 'cancelled' where calcom_v2_booking_id in ('H1', 'I1');
select pg_temp.event('BOOKING_CREATED', 'H1', 2);
select guard.recover_intent('i1');
select bag_eq(
    $$select call_id, coalesce(context ->> 'mismatch', context ->> 'booking_id') from guard.manual_review_queue
    where call_id in (8, 9) and status = 'pending'$$,
    $$values (8::bigint, 'appointment_cancelled'), (9, 'I1')$$, 'one of the two is wrong: a person is asked'
);
select ok(pg_temp.book('h2', 8, 'H2'), 'another attempt succeeds');
select results_eq('select resolved from guard.process_review_queue()', 'values (0)', 'the first is still asked about');
select pg_temp.event('BOOKING_CANCELLED', 'H1', 3);
select pg_temp.event('BOOKING_CANCELLED', 'I1', 3);
select guard.process_review_queue();
select results_eq(
    'select call_id, items from failures where call_id in (8, 9) order by 1',
    $$values (8::bigint, 'resolved'), (9, 'resolved')$$, 'until the calendar has cancelled it too'
);

-- it claimed a booking too early, and was taken for a phantom
update guard.rules set mode = 'correct' where rule = 'missing_appointment';
update public.calls
set
    appointment_made = true, session_outcome = 'appointment_booked', booking_id = 'J' || id,
    created_at = now() - interval '1 minute', updated_at = now() - interval '1 minute'
where id in (10, 11);
update guard.pending_checks set due_at = now();
select guard.judge_pending();
select results_eq(
    $$select call_id, reason from guard.manual_review_queue where call_id in (10, 11) order by 1$$,
    $$values (10::bigint, 'missing_appointment'), (11, 'missing_appointment')$$, 'the claim is taken back'
);
select pg_temp.event('BOOKING_CREATED', 'J10', 1);
select pg_temp.book('j11', 11, 'J11');
select results_eq(
    'select booking_failed, booking_failure_reason, requires_manual_processing, items from failures where call_id = 10',
    $$values (false, null::text, false, 'resolved')$$, 'the webhook that follows clears it'
);
select results_eq(
    'select booking_failed, booking_failure_reason, requires_manual_processing, items from failures where call_id = 11',
    $$values (false, null::text, false, 'resolved')$$, 'and so does a booking that took longer than the grace'
);

-- the job has given up trying
insert into public.staff (id, company_id, name) values (1, 1, 'S');
insert into public.appointments (id, company_id, call_id, staff_id, starts_at, ends_at)
values (100, 1, 13, 1, '2030-01-01 09:00+00', '2030-01-01 10:00+00');
select guard.begin_booking(
    'l1', 12, '{"staff_id": 1, "starts_at": "2030-01-01 09:00+00", "ends_at": "2030-01-01 09:30+00"}'
);
select guard.mark_remote_booked('l1', 'L1');
select pg_temp.event('BOOKING_CREATED', 'L1', 1);
select guard.process_review_queue() from generate_series(1, 4);
select results_eq(
    'select status, attempts from guard.manual_review_queue where call_id = 12', $$values ('pending', 3)$$,
    'what is refused is asked about'
);
delete from public.appointments where id = 100;
select guard.process_review_queue();
select is((select f.items from failures as f where f.call_id = 12), 'resolved', 'the slot is free: nobody is asked');

select * from finish();
rollback;

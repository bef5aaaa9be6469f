-- Write-ahead intents: one key, one request, one remote booking, one appointment.
begin;
select plan(50);

insert into public.companies (id, name) values (1, 'A');
insert into public.staff (id, company_id, name) values (1, 1, 'S');
insert into public.calls (id, company_id, direction) select g, 1, 'inbound' from generate_series(1, 11) as g;

-- the whole way
select results_eq(
    $$select state, is_new from guard.begin_booking('k1', 1, '{"staff_id": 1, "starts_at": "2030-01-01 09:00+00",
        "ends_at": "2030-01-01 09:30+00"}')$$,
    $$values ('started', true)$$, 'a new intent'
);
select results_eq(
    $$select state, is_new from guard.begin_booking('k1', 1, '{"ends_at": "2030-01-01 09:30+00", "staff_id": 1,
        "starts_at": "2030-01-01 09:00+00"}')$$,
    $$values ('started', false)$$, 'the same key and request: the same intent'
);
select throws_ok($$select guard.begin_booking('k1', 1, '{}')$$, 'ZG310', null, 'the same key for another request');
select throws_ok(
    $$select guard.begin_booking('k1', 2, '{"staff_id": 1, "starts_at": "2030-01-01 09:00+00",
        "ends_at": "2030-01-01 09:30+00"}')$$,
    'ZG310', null, 'or for another call'
);
select throws_ok($$select guard.record_booking('k1', '{}')$$, 'ZG311', null, 'nothing to record before it is booked');
select is(
    (select i.state from guard.mark_remote_booked('k1', 'bk_1') as i), 'remote_booked',
    'the calendar has booked'
);
select is((select i.state from guard.mark_remote_booked('k1', 'bk_1') as i), 'remote_booked', 'said twice: once');
select throws_ok($$select guard.mark_remote_booked('k1', 'bk_2')$$, 'ZG311', null, 'another booking for the key');
select throws_ok($$select guard.validate_booking('k1')$$, 'ZG311', null, 'nothing to validate before it is recorded');
select is((select i.state from guard.record_booking('k1', '{}') as i), 'recorded', 'it is recorded');
select is((select i.state from guard.record_booking('k1', '{}') as i), 'recorded', 'said twice: once');
select results_eq(
    $$select call_id, company_id, staff_id, calcom_v2_booking_id, source, status, starts_at, ends_at
    from public.appointments$$,
    $$values (1::bigint, 1::bigint, 1::bigint, 'bk_1', 'retell_webhook', 'booked', timestamptz '2030-01-01 09:00+00',
        timestamptz '2030-01-01 09:30+00')$$, 'one appointment, as requested'
);
select ok((select v.success from guard.validate_booking('k1') as v), 'it is valid');
select results_eq(
    $$select state, is_new, booking_id, appointment_id is not null from guard.begin_booking('k1', 1,
        '{"staff_id": 1, "starts_at": "2030-01-01 09:00+00", "ends_at": "2030-01-01 09:30+00"}')$$,
    $$values ('validated', false, 'bk_1', true)$$, 'the same request again: the first result'
);
select throws_ok($$select guard.fail_booking('k1', 'x')$$, 'ZG311', null, 'what is done cannot fail');

-- failing
select guard.begin_booking('k2', 2, '{}');
select is((select i.state from guard.fail_booking('k2', 'calcom_booking_failed') as i), 'failed', 'it failed');
select is(
    (select c.session_outcome from public.calls as c where c.id = 2), 'creation_failed', 'and the call says so'
);
select is(
    (select i.state from guard.mark_remote_booked('k2', 'bk_late') as i), 'remote_booked',
    'the calendar answered late: the booking is not lost'
);
select is((select i.state from guard.fail_booking('k2', 'calcom_booking_failed') as i), 'failed', 'given up after all');
select isnt_empty(
    $$select from guard.manual_review_queue where call_id = 2 and context ->> 'booking_id' = 'bk_late'$$,
    'a person is told which remote booking'
);

-- what died in between
select guard.begin_booking('k3', 3, '{}');
select guard.begin_booking('k4', 4, '{"staff_id": 1}');
select guard.mark_remote_booked('k4', 'bk_4');
select guard.begin_booking('k5', 5, '{}');
select guard.mark_remote_booked('k5', 'bk_5');
select guard.record_booking('k5', '{}');
select guard.begin_booking(
    'k6', 6,
    '{"staff_id": 1, "starts_at": "2030-01-01 09:15+00", "ends_at": "2030-01-01 10:00+00"}'
);
select guard.mark_remote_booked('k6', 'bk_6');
select guard.begin_booking('k7', 7, '{}');
select guard.mark_remote_booked('k7', 'bk_7');
insert into public.appointments (company_id, calcom_v2_booking_id) values (1, 'bk_7');
select is_empty($$select from guard.recover_intents('1 minute')$$, 'what is young may still be at work');
select bag_eq(
    $$select key, state, action from guard.recover_intents('0 seconds')$$,
    $$values ('k3', 'failed', 'queued'), ('k4', 'validated', 'recorded'), ('k5', 'validated', 'validated'),
    ('k6', 'failed', 'queued'), ('k7', 'validated', 'recorded')$$, 'each is cleared up'
);
select is_empty($$select from guard.recover_intents('0 seconds')$$, 'once');
select results_eq(
    $$select state, action from guard.recover_intent('k4')$$, $$values ('validated', 'none')$$, 'nor one of them'
);
select guard.begin_booking('k8', 8, '{}');
select guard.begin_booking('k9', 9, '{}');
select guard.mark_remote_booked('k9', 'bk_9');
select results_eq(
    $$select key, state, action from guard.recover_intents('0 seconds', '15 minutes')$$,
    $$values ('k9', 'validated', 'recorded')$$, 'a calendar that may yet be asked is given longer'
);
select results_eq(
    $$select state, action from guard.recover_intent('k8', 'not_booked')$$, $$values ('failed', 'queued')$$,
    'what the calendar said of one key'
);
select results_eq(
    $$select failure_reason, q.context ? 'question'
    from guard.booking_intents as i inner join guard.manual_review_queue as q using (call_id) where i.key = 'k8'$$,
    $$values ('not_booked', false)$$, 'is what a person is told'
);
select isnt_empty(
    $$select from guard.manual_review_queue where call_id = 3 and context ? 'question'$$, 'unknown: a person looks'
);
select isnt_empty(
    $$select from guard.manual_review_queue where call_id = 6 and context ->> 'booking_id' = 'bk_6'$$,
    'refused here: a person is told which remote booking'
);
select results_eq(
    $$select call_id from public.appointments where calcom_v2_booking_id = 'bk_7'$$, array[7::bigint],
    'an appointment that the webhook wrote is adopted'
);
select is_empty(
    $$select booking_id from guard.booking_intents as i
    where booking_id is not null
    and not exists (select from public.appointments as a where a.calcom_v2_booking_id = i.booking_id)
    and not exists (select from guard.manual_review_queue as q where q.context ->> 'booking_id' = i.booking_id)$$,
    'no remote booking is left without an appointment or a review item'
);

-- where calls do not follow their appointments, their flags are the application's, which may yet write them
update guard.rules set mode = 'observe' where rule = 'inconsistent_link_status';
select guard.begin_booking('k10', 10, '{}');
select guard.mark_remote_booked('k10', 'bk_10');
select guard.record_booking('k10', '{}');
select results_eq(
    $$select success, reason from guard.validate_booking('k10')$$, 'values (true, null::text)',
    'a booking does not fail for want of them'
);
select guard.begin_booking('k11', 11, '{}');
select guard.mark_remote_booked('k11', 'bk_11');
select results_eq(
    $$select state, action from guard.recover_intent('k11')$$, $$values ('validated', 'recorded')$$,
    'nor when it is recovered'
);
select is(
    (select v.reason from guard.validate_appointment(10) as v), 'flags_inconsistent', 'who asks for them is told'
);

-- a pile of them: the locks of all at once would be more than a server has
insert into guard.booking_intents (key, call_id, request, request_hash, state, booking_id, updated_at)
select 'p' || g, 9, '{}', '', 'remote_booked', 'bk_p' || g, now() - (interval '1 hour' + g * interval '1 second')
from generate_series(1, 501) as g;
create temporary table locked as
select count(*) as locks from pg_catalog.pg_locks as l where l.locktype = 'advisory' and l.pid = pg_backend_pid();
select is((select count(*) from guard.recover_intents()), 500::bigint, 'are cleared up in parts');
select results_eq(
    $$select key from guard.booking_intents where key like 'p%' and state = 'remote_booked'$$, array['p1'],
    'the oldest first'
);
select cmp_ok(
    (
        select count(*) - (select k.locks from locked as k)
        from pg_catalog.pg_locks as l
        where l.locktype = 'advisory' and l.pid = pg_backend_pid()
    ), '<=', 500::bigint, 'and no more are locked'
);

-- bad input
select throws_ok($$select guard.record_booking('k1', '[]')$$, 'ZG313', null, 'columns that are none');
select throws_ok($$select guard.begin_booking('', 1, '{}')$$, 'ZG313', null, 'no key');
select throws_ok(
    $$select guard.begin_booking(repeat('x', 10000), 1, '{}')$$, 'ZG313', null,
    'a key of 10,000 characters'
);
select throws_ok($$select guard.begin_booking('k', 1, null)$$, 'ZG313', null, 'no request');
select throws_ok(
    format('select guard.begin_booking(%L, 1, %L)', 'k', r.request), 'ZG313', null,
    format('%s cannot be recorded: refused before anything is booked', r.request)
) from (
    values
    ('{"starts_at": "nonsense"}'),
    ('{"ends_at": "2030-02-31"}'),
    ('{"staff_id": "Ann"}'),
    ('{"service_id": 1.5}'),
    ('{"customer_id": 99999999999999999999}'),
    ('{"starts_at": "2030-01-01 10:00+00", "ends_at": "2030-01-01 09:00+00"}')
) as r (request);
select throws_ok($$select guard.begin_booking('k', 99, '{}')$$, 'ZG301', null, 'an unknown call');
select throws_ok($$select guard.mark_remote_booked('nope', 'bk')$$, 'ZG312', null, 'an unknown key');
select throws_ok($$select guard.mark_remote_booked('k4', '')$$, 'ZG313', null, 'no booking id');

select * from finish();
rollback;

-- A booking that failed: what the call claims is taken back, recorded, told and queued, all in one and only once.
begin;
select plan(13);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, booking_id)
values (1, 1, 'inbound', 'appointment_booked', true, 'bk_1'), (2, 1, 'inbound', null, false, null);

select ok(guard.rollback_booking(1, 'calcom_booking_failed'), 'something changed');
select results_eq(
    $$select appointment_made, session_outcome, appointment_link_status, booking_failed, booking_failure_reason,
        requires_manual_processing from public.calls where id = 1$$,
    $$values (false, 'creation_failed', 'creation_failed', true, 'calcom_booking_failed', true)$$, 'the flags'
);
select results_eq(
    $$select severity, entity_id, auto_corrected,
        (select c ->> 'before' from jsonb_array_elements(metadata -> 'changes') as c where c ->> 'column' = 'session_outcome')
    from guard.data_consistency_alerts where alert_type = 'booking_rolled_back'$$,
    $$values ('critical', 1::bigint, true, 'appointment_booked')$$, 'the alert, with the values before'
);
select results_eq(
    'select call_id, reason, priority from guard.manual_review_queue',
    $$values (1::bigint, 'calcom_booking_failed', 2)$$, 'the review item'
);
select results_eq(
    'select severity, kind, entity_id, message_id from guard.notifications',
    $$values ('critical', 'booking_rolled_back', 1::bigint, null::bigint)$$, 'the message'
);
select is_empty('select from guard.missing_appointment', 'no phantom is left');

select ok(not guard.rollback_booking(1, 'calcom_booking_failed'), 'again: nothing changes');
select results_eq(
    $$select (select count(*) from guard.notifications),
        (select count(*) from guard.data_consistency_alerts where alert_type = 'booking_rolled_back')$$,
    'values (1::bigint, 1::bigint)', 'again: nothing is told twice'
);

insert into public.appointments (company_id, call_id) values (1, 2);
select ok(guard.rollback_booking(2, 'appointment_validation_failed'), 'a call that has an appointment');
select results_eq(
    $$select appointment_made, session_outcome, appointment_link_status, requires_manual_processing
    from public.calls where id = 2$$,
    $$values (true, 'appointment_booked', 'linked', true)$$, 'keeps its flags, and a person is asked'
);

select throws_ok($$select guard.rollback_booking(99, 'x')$$, 'ZG301', null, 'an unknown call');
select throws_ok($$select guard.rollback_booking(null, 'x')$$, 'ZG301', null, 'no call');
select throws_ok('select guard.rollback_booking(1, null)', 'ZG308', null, 'no reason');

select * from finish();
rollback;

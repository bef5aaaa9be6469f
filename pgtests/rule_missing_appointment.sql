-- The phantom booking: a call claims an appointment that does not exist.
begin;
select plan(18);

insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
values
(1, 1, 'inbound', 'appointment_booked', true, now() - interval '1 hour', now() - interval '1 hour'),
(2, 1, 'inbound', 'appointment_booked', true, now() - interval '1 hour', now() - interval '1 second'),
(3, 1, 'inbound', 'appointment_booked', true, now() - interval '1 hour', now() - interval '1 hour');
select results_eq(
    'select entity_id from guard.missing_appointment order by 1', array[1, 3]::bigint[],
    'a claim counts after the grace'
);
select bag_eq(
    'select call_id from guard.pending_checks', array[1, 2, 3]::bigint[],
    'correct: every claim is queued for a check'
);

insert into public.appointments (company_id, call_id) values (1, 1);
select results_eq(
    'select entity_id from guard.missing_appointment', array[3]::bigint[], 'an appointment makes the claim true'
);

select guard.set_rule('missing_appointment', 'off');
insert into public.calls (id, company_id, direction, appointment_made) values (4, 1, 'inbound', true);
select is_empty('select from guard.pending_checks where call_id = 4', 'off: nothing is queued');

set constraints all immediate;
set constraints all deferred;
select guard.set_rule('missing_appointment', 'enforce');
insert into public.calls (id, company_id, direction, session_outcome, appointment_made)
values (5, 1, 'inbound', 'appointment_booked', true);
select pass('enforce: the claim alone is not refused');
savepoint claimed; -- noqa: PRS
select throws_ok(
    'set constraints all immediate', 'ZG103', null,
    'enforce: at COMMIT it is, while there is no appointment'
);
rollback to savepoint claimed;
insert into public.appointments (company_id, call_id) values (1, 5);
select lives_ok('set constraints all immediate', 'enforce: with the appointment it passes');
set constraints all deferred;

savepoint withdrawn; -- noqa: PRS
insert into public.calls (id, company_id, direction, appointment_made) values (6, 1, 'inbound', true);
update public.calls set appointment_made = false where id = 6;
select lives_ok('set constraints all immediate', 'enforce: a claim that was taken back passes');
rollback to savepoint withdrawn;
set constraints all deferred;

insert into public.calls (id, company_id, direction, appointment_made) values (7, 1, 'inbound', true);
delete from public.calls where id = 7;
select lives_ok('set constraints all immediate', 'enforce: and so does a call that was deleted');
set constraints all deferred;

update public.calls set status = 'ended' where id = 3;
select lives_ok('set constraints all immediate', 'enforce: an old phantom can be written');
set constraints all deferred;

update public.calls set appointment_link_status = 'linked' where id = 3;
select is(
    (select c.appointment_link_status from public.calls as c where c.id = 3), 'unlinked',
    'a claim cannot hide behind a link status'
);
select throws_ok(
    $$update public.calls set appointment_made = false, session_outcome = null where id = 3;
    update public.calls set appointment_made = true where id = 3;
    set constraints all immediate$$,
    'ZG103', null, 'enforce: a new claim on an old call is refused'
);

-- Residue of the time before guard: linked, and there is no appointment.
select guard.set_rule('inconsistent_link_status', 'observe');
insert into public.calls (id, company_id, direction, appointment_link_status, created_at)
select i, 1, 'inbound', 'linked', now() - interval '3 hours' from generate_series(11, 14) as i;
delete from guard.pending_checks;

select guard.set_rule('inconsistent_link_status', 'correct');
savepoint stale; -- noqa: PRS
update public.calls set appointment_made = true, session_outcome = 'appointment_booked' where id = 11;
select is(
    (select c.appointment_link_status from public.calls as c where c.id = 11), 'unlinked',
    'nor can a claim hide behind an old one'
);
select throws_ok('set constraints all immediate', 'ZG103', null, 'enforce: it is refused');
rollback to savepoint stale;
set constraints all deferred;

select guard.set_rule('inconsistent_link_status', 'enforce');
update public.calls set appointment_made = true where id = 12;
insert into public.appointments (company_id, call_id) values (1, 12);
select lives_ok(
    'set constraints all immediate', 'the status was wrong before: a booking is not refused for it'
);
set constraints all deferred;

select guard.set_rule('inconsistent_link_status', 'observe');
savepoint observed; -- noqa: PRS
update public.calls set appointment_made = true where id = 13;
select throws_ok(
    'set constraints all immediate', 'ZG103', null, 'enforce: also where the link status is only observed'
);
rollback to savepoint observed;
set constraints all deferred;

select guard.set_rule('missing_appointment', 'observe');
update public.calls set appointment_made = true where id = 14;
insert into public.calls (id, company_id, direction, appointment_made, appointment_link_status)
values (15, 1, 'inbound', true, 'linked');
select bag_eq(
    'select distinct call_id from guard.pending_checks where call_id > 12', array[14, 15]::bigint[],
    'observe: a claim that says linked is queued for a check, whoever said it'
);
insert into public.calls (id, company_id, direction, session_outcome) values (16, 1, 'inbound', 'abandoned');
select guard.set_rule('inconsistent_link_status', 'correct');
insert into public.appointments (company_id, call_id) values (1, 16);
select is_empty(
    'select from guard.pending_checks where call_id = 16', 'a call that follows its appointment is not'
);

select * from finish();
rollback;

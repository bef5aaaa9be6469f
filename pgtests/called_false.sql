-- What a person called false is neither repaired nor queued, and the verdict stays.
begin;
select plan(9);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
select i, 1, 'inbound', 'appointment_booked', true, now() - interval '10 minutes', now() - interval '10 minutes'
from generate_series(1, 2) as i;
update guard.rules set mode = 'observe' where rule = 'missing_appointment';
select lives_ok('select * from guard.detect()', 'two phantoms');
select guard.set_incident(i.id, 'resolved', p_is_false => true) from guard.incidents as i where i.entity_id = 1;
update guard.rules set mode = 'correct' where rule = 'missing_appointment';

select results_eq(
    'select examined, repaired, queued, called_false from guard.reconcile()', 'values (2, 1, 1, 1)',
    'a dry run says that one is none'
);
select results_eq(
    'select examined, repaired, queued, called_false from guard.reconcile(false)', 'values (2, 1, 1, 1)',
    'and so it is'
);
select results_eq(
    'select id, session_outcome, appointment_made, booking_failure_reason from public.calls order by id',
    $$values (1::bigint, 'appointment_booked', true, null), (2, 'creation_failed', false, 'missing_appointment')$$,
    'it is left as it is'
);
select results_eq(
    'select call_id from guard.manual_review_queue', array[2::bigint], 'and nobody is asked about it'
);

update guard.incidents set resolved_at = '2020-01-01 UTC', created_at = '2020-01-01 UTC';
select results_eq(
    $$select guard.prune_history() ->> 'incidents'$$, array['1'], 'other incidents are deleted in time'
);
select is((select sum(new_incidents)::integer from guard.detect()), 0, 'this one stays quiet');
select is((select count(*)::integer from guard.incidents), 1, 'for good');

update public.calls set updated_at = now() - interval '5 minutes' where id = 1;
select results_eq(
    'select repaired, called_false from guard.reconcile(false)', 'values (1, 0)', 'until the row is written again'
);

select * from finish();
rollback;

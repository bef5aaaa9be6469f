-- What a person does about an incident.
begin;
select plan(21);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (id, company_id, direction) values (1, 1, null);
update guard.rules set mode = 'observe';
select is((select sum(new_incidents)::integer from guard.detect()), 1, 'an incident');
create temporary table seen as select id from guard.incidents;
grant select on seen to guard_operator;

set local role guard_operator;
select results_eq(
    $$select status, acknowledged_at is not null, note
    from guard.set_incident((select id from seen), 'acknowledged', p_note => 'seen')$$,
    $$values ('acknowledged', true, 'seen')$$, 'acknowledged'
);
select results_eq(
    $$select status, assignee from guard.set_incident((select id from seen), p_assignee => 'ann')$$,
    $$values ('acknowledged', 'ann')$$, 'assigned; what is not said stays as it is'
);
select results_eq(
    $$select status, snoozed_until from guard.set_incident(
        (select id from seen), 'snoozed', p_snoozed_until => '2100-01-01 00:00+00'
    )$$,
    $$values ('snoozed', timestamptz '2100-01-01 00:00+00')$$, 'snoozed'
);
select throws_ok(
    $$select guard.set_incident((select id from seen), 'snoozed', p_snoozed_until => '2000-01-01')$$, 'ZG402', null,
    'not until a moment that has passed'
);
select throws_ok(
    $$select guard.set_incident((select id from seen), 'snoozed')$$, 'ZG402', null, 'nor for ever'
);
select throws_ok($$select guard.set_incident(-1, 'resolved')$$, 'ZG401', null, 'an incident that there is not');
select throws_ok($$select guard.set_incident(null, 'resolved')$$, 'ZG401', null, 'nor null');
select throws_ok(
    $$select guard.set_incident((select id from seen), 'gone; drop table calls')$$, 'ZG402', null,
    'a status that there is not'
);
select throws_ok(
    $$select guard.set_incident((select id from seen))$$, 'ZG403', null, 'nothing to change'
);
select throws_ok(
    $$select guard.set_incident((select id from seen), p_note => repeat('x', 3000))$$, 'ZG402', null, 'a novel'
);
select throws_ok(
    $$select guard.set_incident((select id from seen), p_assignee => ' ')$$, 'ZG402', null, 'nobody in particular'
);
reset role;
select is((select sum(new_incidents)::integer from guard.detect()), 0, 'detection lets it sleep');
select is((select status from guard.incidents), 'snoozed', 'and leaves it snoozed');
update guard.incidents set snoozed_until = now() - interval '1 second';
select lives_ok('select * from guard.detect()', 'the time is over');
select results_eq(
    $$select status = 'open' and snoozed_until is null from guard.incidents$$, array[true], 'it is open again'
);

select results_eq(
    $$select status = 'resolved' and is_false and resolved_by = session_user
    from guard.set_incident((select id from seen), 'resolved', p_is_false => true)$$,
    array[true], 'nothing was wrong'
);
select throws_ok(
    $$select guard.set_incident((select id from seen), 'snoozed', p_snoozed_until => '2100-01-01')$$, 'ZG403', null,
    'what is resolved is not snoozed'
);
select lives_ok('select * from guard.detect()', 'seen once more');
select is((select status from guard.incidents), 'resolved', 'what was false stays quiet');
update public.calls set updated_at = now() + interval '1 second' where id = 1;
select is(
    (select sum(new_incidents)::integer from guard.detect('1 hour')), 1, 'until the row is written again'
);

select * from finish();
rollback;

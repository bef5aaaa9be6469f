-- Incidents of a rule that is off, or is no more, are closed; switched on again it opens them anew.
begin;
select plan(5);

insert into public.companies (id, name) values (1, 'A');
update guard.rules set mode = 'off';
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
values (1, 1, null, 'appointment_booked', true, now() - interval '1 hour', now() - interval '1 hour');
update guard.rules set mode = 'observe' where rule = any('{missing_direction,missing_appointment}');
insert into guard.incidents (fingerprint, rule, severity, entity_type, entity_id, description, details)
values
('own_rule:call:1', 'own_rule', 'critical', 'call', 1, 'of a rule that was removed', '{}'),
('rule_failed:rule:own_rule', 'rule_failed', 'critical', 'rule', null, 'the same', '{"subject": "own_rule"}'),
(
    'rule_overflow:rule:missing_appointment', 'rule_overflow', 'critical', 'rule', null, 'of a rule that is there',
    '{"subject": "missing_appointment", "found": 2000}'
),
('job_failed:job:report', 'job_failed', 'critical', 'job', null, 'of a job', '{"subject": "report"}');
select is((select sum(new_incidents)::integer from guard.detect('2 hours')), 2, 'two incidents');
update guard.rules set mode = 'off' where rule = 'missing_direction';
select lives_ok('select * from guard.detect()', 'one of the rules is off');
select results_eq(
    'select fingerprint, resolved_by from guard.incidents where status = $$resolved$$ order by 1',
    $$values
        ('missing_direction:call:1', 'rule off'), ('own_rule:call:1', 'rule off'),
        ('rule_failed:rule:own_rule', 'rule off'), ('rule_overflow:rule:missing_appointment', 'guard')$$,
    'so its incidents are over, and those of one that is gone'
);
update guard.rules set mode = 'observe' where rule = 'missing_direction';
select is((select sum(new_incidents)::integer from guard.detect('2 hours')), 1, 'it is switched on');
select results_eq(
    $$select status from guard.incidents where fingerprint = 'missing_direction:call:1'$$, array['open'],
    'and its incident is back'
);

select * from finish();
rollback;

-- What slipped through is found within its window, becomes one incident, and is resolved when it is gone.
begin;
select plan(24);

select set_eq('select mode from guard.rules', array['correct'], 'every rule stands at correct');
update guard.rules set mode = 'off';
insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, session_outcome, appointment_made, created_at, updated_at)
values
(1, 1, null, null, false, now() - interval '10 minutes', now() - interval '10 minutes'),
(2, 1, null, null, false, now() - interval '3 days', now() - interval '3 days'),
(3, 1, 'inbound', 'appointment_booked', true, now() - interval '3 days', now() - interval '10 minutes'),
(4, 1, 'inbound', null, false, now(), now());
update guard.rules set mode = 'observe';

select results_eq(
    'select rule, found, new_incidents from guard.detect() where found > 0',
    $$values ('missing_appointment', 1::bigint, 1::bigint), ('missing_direction', 1, 1)$$,
    'what was written within the hour is found, also on an old call'
);
select results_eq(
    'select rule, found, new_incidents from guard.detect() where found > 0',
    $$values ('missing_appointment', 1::bigint, 0::bigint), ('missing_direction', 1, 0)$$,
    'a second look opens nothing again'
);
select is((select count(*) from guard.detect()), 11::bigint, 'every rule that is not off has its line');
select results_eq(
    'select fingerprint, severity, status, occurrences, company_id from guard.incidents order by 1',
    $$values
        ('missing_appointment:call:3', 'critical', 'open', 1, 1::bigint),
        ('missing_direction:call:1', 'warning', 'open', 1, 1)$$,
    'one incident for each'
);
select results_eq(
    $$select alert_type, entity_id, auto_corrected from guard.data_consistency_alerts
    where metadata ->> 'mode' = 'detect' order by 1$$,
    $$values ('missing_appointment', 3::bigint, false), ('missing_direction', 1, false)$$, 'and one alert'
);
select results_eq(
    'select kind, severity, entity_id from guard.notifications order by 1',
    $$values ('missing_appointment', 'critical', 3::bigint), ('missing_direction', 'warning', 1)$$,
    'and one message in the outbox'
);
select results_eq(
    $$select new_incidents from guard.detect('10 years') where rule = 'missing_direction'$$,
    array[1::bigint], 'ten years back everything is found'
);
select is((select sum(found)::integer from guard.detect('0')), 0, 'nothing happened within no time');
select is(
    (select count(*) from guard.incidents where status = 'open'), 3::bigint,
    'and what is older than the window does not count as gone'
);
select throws_ok($$select * from guard.detect('-1 hour')$$, 'ZG404', null, 'a window does not lie ahead');
select throws_ok('select * from guard.detect(null)', 'ZG404', null, 'nor is it nothing');
select lives_ok($$select * from guard.detect('200000 years')$$, 'however wide it is');

update public.calls set direction = 'outbound' where id = 1;
select lives_ok('select * from guard.detect()', 'looked at again');
select results_eq(
    $$select status, resolved_by from guard.incidents where fingerprint = 'missing_direction:call:1'$$,
    $$values ('resolved', 'guard')$$, 'what is gone is resolved by itself'
);
update public.calls set direction = null, updated_at = now() where id = 1;
select results_eq(
    $$select new_incidents from guard.detect() where rule = 'missing_direction'$$, array[1::bigint],
    'what comes back opens it again'
);
select results_eq(
    $$select status, occurrences, resolved_at from guard.incidents where fingerprint = 'missing_direction:call:1'$$,
    $$values ('open', 2, null::timestamptz)$$, 'as the same incident'
);

create or replace view guard.missing_direction
with (security_invoker = true)
as
select
    r.rule, r.severity, 'call' as entity_type, c.id as entity_id, c.company_id,
    now() + (1 / (c.id - c.id)) * interval '1 second' as occurred_at, '{}'::jsonb as details, c.id as row_id
from public.calls as c
inner join guard.rules as r on r.rule = 'missing_direction';
select results_eq(
    $$select rule, found from guard.detect() where rule in ('missing_direction', 'missing_appointment')$$,
    $$values ('missing_appointment', 1::bigint), ('missing_direction', null)$$,
    'a rule whose view fails stops no other'
);
select results_eq(
    $$select severity, entity_type, details ->> 'error' from guard.incidents where rule = 'rule_failed'$$,
    $$values ('critical', 'rule', '22012: division by zero')$$, 'and is a critical incident itself'
);
update guard.incidents set last_seen_at = now() - interval '1 hour';
select lives_ok('select * from guard.detect()', 'also when it fails for an hour');
select results_eq(
    $$select occurrences, last_seen_at = now() from guard.incidents where rule = 'rule_failed'$$, 'values (1, true)',
    'as one incident'
);
select guard.set_incident(i.id, 'resolved', p_is_false => true) from guard.incidents as i where i.rule = 'rule_failed';
select guard.detect();
select results_eq(
    $$select status, is_false from guard.incidents where rule = 'rule_failed'$$, $$values ('open', false)$$,
    'that a view fails is never false'
);
select is_empty(
    $$select from guard.incidents where fingerprint = 'missing_direction:call:1' and status = 'resolved'$$,
    'what it had found is not taken for gone'
);
select results_eq(
    'select rule from guard.check_call(3)', array['missing_appointment'],
    'one call is checked by the rules that work'
);

select * from finish();
rollback;

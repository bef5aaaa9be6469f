-- What counts as found in a period, and of that as corrected: for the KPIs and the report alike.
begin;
select plan(9);

insert into public.companies (id, name) values (1, 'A'), (2, 'B');
create function pg_temp.rate(p_company bigint = null)
returns table (value numeric, rows_behind bigint)
language sql
as $$
    select round(k.value, 2), k.rows_behind
    from guard.kpis(now() - interval '1 hour', now() + interval '1 hour', p_company) as k
    where k.kpi = 'auto_correction_rate'
$$;
create function pg_temp.found(p_rule text)
returns table (found bigint, corrected bigint, recovered bigint)
language sql
as $$
    select r.found, r.corrected, r.recovered
    from guard.report_rules(now() - interval '1 hour', now() + interval '1 hour') as r
    where r.rule = p_rule
$$;

-- an orphan that its call is known of, and two that nobody knows of
insert into public.calls (id, company_id, direction, booking_id) values (1, 1, 'inbound', 'bk_1');
update guard.rules set mode = 'off';
insert into public.appointments (id, company_id, source, calcom_v2_booking_id)
values (1, 1, 'retell_webhook', 'bk_1'), (2, 1, 'retell_webhook', 'bk_2'), (3, 2, 'retell_webhook', 'bk_3');
update guard.rules set mode = 'correct';
select guard.reconcile(false, 'orphaned_appointment');
select results_eq(
    $$select found, corrected from pg_temp.found('orphaned_appointment')$$, 'values (3::bigint, 1::bigint)',
    'what was left to a person was found, too'
);
select results_eq(
    'select * from pg_temp.rate(2)', 'values (0.00, 1::bigint)', 'and was not corrected, in its company'
);
delete from guard.data_consistency_alerts where alert_type <> 'orphaned_appointment';
select results_eq('select * from pg_temp.rate()', 'values (33.33, 3::bigint)', 'one of three was');
update guard.manual_review_queue set status = 'resolved', resolution = 'x', resolved_at = now();
select results_eq('select * from pg_temp.rate()', 'values (33.33, 3::bigint)', 'also when the person has answered');

-- calls that merely follow what was repaired
insert into guard.data_consistency_alerts (
    alert_type, severity, entity_type, entity_id, company_id, description, metadata, auto_corrected, corrected_at
)
select 'inconsistent_link_status', 'warning', 'call', 1, 1, 'x', '{"by": "repair", "follows": "x"}', true, now();
select results_eq(
    $$select * from pg_temp.found('inconsistent_link_status')$$, 'values (0::bigint, 0::bigint, 0::bigint)',
    'a call that follows a repaired appointment was no defect'
);

-- two found, one of them false
insert into public.calls (id, company_id, direction) values (11, 1, 'inbound'), (12, 1, 'inbound');
insert into guard.data_consistency_alerts (
    alert_type, severity, entity_type, entity_id, company_id, description
)
select 'missing_appointment', 'critical', 'call', g, 1, 'x' from generate_series(11, 12) as g;
insert into guard.incidents (fingerprint, rule, severity, entity_type, entity_id, company_id, description)
select 'missing_appointment:call:' || g, 'missing_appointment', 'critical', 'call', g, 1, 'x'
from generate_series(11, 12) as g;
select guard.set_incident(i.id, 'resolved', p_is_false => true) from guard.incidents as i where i.entity_id = 12;
select results_eq(
    $$select * from pg_temp.found('missing_appointment')$$, 'values (1::bigint, 0::bigint, 1::bigint)',
    'what a person found to be false was not found, nor did it recover'
);
select results_eq(
    'select sum(d.found), sum(d.corrected) from guard.report_days(current_date + 1, 3) as d',
    $$select sum(c.found), sum(c.corrected)
    from guard.report_companies(now() - interval '1 hour', now() + interval '1 hour') as c$$,
    'days and companies count the same'
);
select is(
    (select sum(d.found) from guard.report_days(current_date + 1, 3) as d), 4::numeric, 'three orphans and the phantom'
);
update guard.data_consistency_alerts set auto_corrected = true, corrected_at = now() where entity_id = 12;
select results_eq(
    $$select found, corrected from pg_temp.found('missing_appointment')$$, 'values (2::bigint, 1::bigint)',
    'what guard corrected before that was corrected'
);

select * from finish();
rollback;

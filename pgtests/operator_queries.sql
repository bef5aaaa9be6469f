-- The queries that operators have had since before guard run unchanged.
begin;
select plan(9);

set local search_path = guard, guard_bi, public, tap;
select lives_ok(
    $$select count(*) as mismatches from calls where session_outcome = 'appointment_booked' and appointment_made = false
      and created_at >= now() - interval '24 hours'$$, 'mismatches'
);
select lives_ok(
    $$select count(*) as missing from calls c left join appointments a on a.call_id = c.id
      where c.appointment_made = true and a.id is null and c.created_at >= now() - interval '24 hours'$$,
    'missing appointments'
);
select lives_ok(
    $$select alert_type, severity, count(*) as count,
      sum(case when auto_corrected then 1 else 0 end) as auto_corrected_count
      from data_consistency_alerts where detected_at >= now() - interval '24 hours' group by alert_type, severity
      order by count desc$$, 'alerts by type'
);
select bag_has(
    $$select trigger_name::text, event_manipulation::text, event_object_table::text from information_schema.triggers
      where trigger_schema = 'public' and event_object_table in ('calls', 'appointments')$$,
    $$values
    ('before_insert_call_set_direction', 'INSERT', 'calls'),
    ('before_insert_call_validate_outcome', 'INSERT', 'calls'),
    ('before_update_call_validate_outcome', 'UPDATE', 'calls'),
    ('before_update_call_sync_customer_link', 'UPDATE', 'calls'),
    ('after_insert_appointment_sync_call', 'INSERT', 'appointments'),
    ('after_delete_appointment_sync_call', 'DELETE', 'appointments')$$,
    'the triggers by the names that they know'
);

select lives_ok(
    $$select circuit_key, state, failure_count, last_failure_at from circuit_breaker_states where state != 'closed'$$,
    'circuits that are not closed'
);
select lives_ok(
    $$select avg(extract(epoch from (closed_at - opened_at))) as avg_recovery_seconds from circuit_breaker_states
      where closed_at is not null and opened_at >= now() - interval '1 day'$$, 'how long recovery takes'
);
select lives_ok(
    $$select mrq.id, mrq.call_id, mrq.reason, mrq.priority, mrq.status, c.retell_call_id, c.from_number, mrq.created_at
      from manual_review_queue mrq join calls c on c.id = mrq.call_id where mrq.status = 'pending'
      order by mrq.priority asc, mrq.created_at asc limit 10$$, 'what waits for a person'
);
insert into public.companies (id, name) values (1, 'A');
insert into public.calls (id, company_id, direction, session_outcome) values (1, 1, 'inbound', 'no_booking');
select lives_ok(
    $$select (count(*) filter (where (session_outcome = 'appointment_booked' and appointment_made = true)
        or (session_outcome != 'appointment_booked' and appointment_made = false))::float / count(*)) * 100
      as consistency_rate_pct from calls where created_at >= now() - interval '1 day' and session_outcome is not null$$,
    'the consistency rate'
);
select lives_ok(
    $$select percentile_cont(0.95) within group (order by duration_ms) as p95_latency_ms from validation_metrics
      where created_at >= now() - interval '1 day'$$, 'how long validation takes'
);

select * from finish();
rollback;

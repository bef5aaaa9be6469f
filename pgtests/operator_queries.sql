-- The queries that operators have had since before guard run unchanged.
begin;
select plan(6);

set local search_path = guard, public, tap;
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

select * from finish();
rollback;

-- transactional: false
-- The events of one phone call or remote booking; word for word as guard.call_history asks for them.
create index concurrently if not exists webhook_events_subject_idx
on guard.webhook_events ((coalesce(payload #>> '{call,call_id}', payload #>> '{payload,uid}')));

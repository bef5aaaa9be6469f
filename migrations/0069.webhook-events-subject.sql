-- The events of one phone call or remote booking; word for word as guard.call_history asks for them.
-- The table is guard's own, and who writes it, a webhook, comes again:
-- squawk-ignore-file require-concurrent-index-creation
set local role guard_owner;

create index if not exists webhook_events_subject_idx
on guard.webhook_events ((coalesce(payload #>> '{call,call_id}', payload #>> '{payload,uid}')));

-- transactional: false
drop index concurrently if exists guard.webhook_events_subject_idx;

drop index guard.webhook_events_subject_idx;

-- A row each time that something suspicious is written: a unique index would have a writer wait for the session that
-- judges the same call.
-- pending_checks is guard's own and short-lived, and nobody but guard reads it:
-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion
set local role guard_owner;

drop index if exists guard.pending_checks_call_idx;
drop index if exists guard.pending_checks_appointment_idx;

-- transactional: false
-- Calls whose booking failed, by when they came in.
create index concurrently if not exists guard_calls_failures
on public.calls (created_at)
where session_outcome::text = any('{creation_failed,booking_failed}');

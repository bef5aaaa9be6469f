-- transactional: false
drop index concurrently if exists public.guard_calls_created_at;

-- transactional: false
drop index concurrently if exists public.guard_calls_failures;

-- transactional: false
drop index concurrently if exists public.guard_appointments_call_id;

-- transactional: false
drop index concurrently if exists public.guard_appointments_created_at;

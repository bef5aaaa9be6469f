-- transactional: false
-- Detection looks at the appointments of its window.
create index concurrently if not exists guard_appointments_created_at
on public.appointments (created_at);

-- transactional: false
-- Appointments that came from a call and name none.
create index concurrently if not exists guard_appointments_orphans
on public.appointments (id)
where source = 'retell_webhook' and call_id is null;

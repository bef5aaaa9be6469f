-- transactional: false
-- Whether a call has an appointment: asked by every trigger and most rules.
create index concurrently if not exists guard_appointments_call_id
on public.appointments (call_id);

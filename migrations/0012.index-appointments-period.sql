-- transactional: false
-- Active appointments of one staff member that overlap a given time.
create index concurrently if not exists guard_appointments_staff_period
on public.appointments using gist (staff_id, guard.period(starts_at, ends_at))
where status::text <> all('{cancelled,rejected,rescheduled,no_show}');

-- transactional: false
-- Appointments that share one remote booking.
create index concurrently if not exists guard_appointments_booking_id
on public.appointments (calcom_v2_booking_id)
where calcom_v2_booking_id is not null;

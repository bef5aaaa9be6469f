-- transactional: false
-- The call that knows an orphan's remote booking.
create index concurrently if not exists guard_calls_booking_id
on public.calls (booking_id)
where booking_id is not null;

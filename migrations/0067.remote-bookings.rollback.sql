drop index if exists guard.remote_bookings_replaced_by_idx;
drop index if exists guard.remote_bookings_retell_call_idx;
drop index if exists guard.remote_bookings_call_idx;

comment on column guard.remote_bookings.event_at is 'The calendar''s time of the newest event.';

update guard.remote_bookings set event_at = created_at where event_at is null;

alter table guard.remote_bookings
alter column event_at set not null,
drop column if exists starts_at,
drop column if exists ends_at,
drop column if exists call_id,
drop column if exists retell_call_id,
drop column if exists refused;

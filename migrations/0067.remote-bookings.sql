-- What the calendar said of a booking is kept whole, so that its appointment can be brought in line at any time: when
-- its call becomes known, say, or when the slot that refused it is free.
-- remote_bookings is guard's own, and who writes it, a webhook, comes again:
-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion, ban-drop-not-null
set local role guard_owner;

alter table guard.remote_bookings
alter column event_at drop not null,
add column if not exists starts_at timestamptz,
add column if not exists ends_at timestamptz,
add column if not exists call_id bigint,
add column if not exists retell_call_id text,
add column if not exists refused text;

create index if not exists remote_bookings_replaced_by_idx on guard.remote_bookings (replaced_by)
where replaced_by is not null;
create index if not exists remote_bookings_retell_call_idx on guard.remote_bookings (retell_call_id)
where call_id is null;
create index if not exists remote_bookings_call_idx on guard.remote_bookings (call_id) where call_id is not null;

comment on column guard.remote_bookings.event_at is
'The calendar''s time of the newest event; null while none with a time came.';
comment on column guard.remote_bookings.starts_at is 'When it begins, as the newest event says.';
comment on column guard.remote_bookings.ends_at is 'When it ends, as the newest event says.';
comment on column guard.remote_bookings.call_id is 'The call that it belongs to, once that is known.';
comment on column guard.remote_bookings.retell_call_id is 'The phone agent''s id of the call, as its metadata say.';
comment on column guard.remote_bookings.refused is
'The SQLSTATE with which its appointment was refused; null if it was written, or waits for nothing.';

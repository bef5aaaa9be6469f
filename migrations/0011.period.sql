-- The time an appointment takes, as a range, for local and for zoned timestamps. Null where the end is not after the
-- start, so that a malformed row overlaps nothing instead of raising. An index and an EXCLUDE constraint are built on
-- these functions: they are frozen here and not among the replaceable objects.
set local role guard_owner;

create or replace function guard.period(p_starts_at timestamp, p_ends_at timestamp)
returns tsrange
language sql
immutable
parallel safe
return case when p_starts_at < p_ends_at then pg_catalog.tsrange(p_starts_at, p_ends_at) end;

create or replace function guard.period(p_starts_at timestamptz, p_ends_at timestamptz)
returns tstzrange
language sql
immutable
parallel safe
return case when p_starts_at < p_ends_at then pg_catalog.tstzrange(p_starts_at, p_ends_at) end;

comment on function guard.period(timestamp, timestamp) is
'The time an appointment takes, in the application''s local time; null if it does not end after it starts.';
comment on function guard.period(timestamptz, timestamptz) is
'The time an appointment takes; null if it does not end after it starts.';

-- An index calls them with the rights of whoever writes to the table.
grant execute on function guard.period(timestamp, timestamp) to public;
grant execute on function guard.period(timestamptz, timestamptz) to public;

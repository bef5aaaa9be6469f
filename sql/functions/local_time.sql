-- provides: function guard.instant(timestamp without time zone, text)
-- provides: function guard.instant(timestamp with time zone, text)
-- provides: function guard.local_date(timestamp without time zone, text)
-- provides: function guard.local_date(timestamp with time zone, text)
-- provides: function guard.bound(timestamp with time zone, text, timestamp without time zone)
-- provides: function guard.bound(timestamp with time zone, text, timestamp with time zone)
--
-- The application's columns are local timestamps in some databases and timestamptz in others; the type of the argument
-- chooses. The zone is passed in, and the bodies are bound when they are created: so they need no search_path, and the
-- planner puts them in place of the call. A view over millions of rows calls no function at all, and a period is
-- compared with the bare column, so that an index on it serves.

create or replace function guard.instant(p_local timestamp without time zone, p_zone text)
returns timestamp with time zone
language sql
immutable
parallel safe
security invoker
return p_local at time zone p_zone;

create or replace function guard.instant(p_instant timestamp with time zone, p_zone text)
returns timestamp with time zone
language sql
immutable
parallel safe
security invoker
return p_instant;

create or replace function guard.local_date(p_local timestamp without time zone, p_zone text)
returns date
language sql
immutable
parallel safe
security invoker
return p_local::date;

create or replace function guard.local_date(p_instant timestamp with time zone, p_zone text)
returns date
language sql
immutable
parallel safe
security invoker
return (p_instant at time zone p_zone)::date;

create or replace function guard.bound(
    p_instant timestamp with time zone, p_zone text, p_column timestamp without time zone
)
returns timestamp without time zone
language sql
immutable
parallel safe
security invoker
return p_instant at time zone p_zone;

create or replace function guard.bound(
    p_instant timestamp with time zone, p_zone text, p_column timestamp with time zone
)
returns timestamp with time zone
language sql
immutable
parallel safe
security invoker
return p_instant;

comment on function guard.instant(timestamp without time zone, text) is
'The instant that a local timestamp means in a zone.';
comment on function guard.instant(timestamp with time zone, text) is 'The instant itself.';
comment on function guard.local_date(timestamp without time zone, text) is 'The day of a local timestamp.';
comment on function guard.local_date(timestamp with time zone, text) is 'The day of an instant in a zone.';
comment on function guard.bound(timestamp with time zone, text, timestamp without time zone) is
'An instant as a column of local timestamps would have it.';
comment on function guard.bound(timestamp with time zone, text, timestamp with time zone) is
'An instant as a column of instants would have it: itself.';

grant execute on function guard.instant(timestamp without time zone, text)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.instant(timestamp with time zone, text)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.local_date(timestamp without time zone, text)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.local_date(timestamp with time zone, text)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.bound(timestamp with time zone, text, timestamp without time zone)
to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.bound(timestamp with time zone, text, timestamp with time zone)
to guard_operator, guard_reader, guard_monitor;

-- provides: function guard.instant(timestamp without time zone)
-- provides: function guard.instant(timestamp with time zone)
--
-- The application's columns are local timestamps in some databases and timestamptz in others. A view that asks for
-- guard.instant(column) binds to the right one of these when it is created, and means the same instant in every
-- session's time zone. Bound as they are made, and inlined: a view asks once or twice a row.

create or replace function guard.instant(p_local timestamp without time zone)
returns timestamp with time zone
language sql
stable
parallel safe
security invoker
return p_local at time zone guard.setting('app_timezone');

create or replace function guard.instant(p_instant timestamp with time zone)
returns timestamp with time zone
language sql
immutable
parallel safe
security invoker
return p_instant;

comment on function guard.instant(timestamp without time zone) is
'The instant that a local timestamp of the application means, read in settings.app_timezone.';
comment on function guard.instant(timestamp with time zone) is 'The instant itself.';

grant execute on function guard.instant(timestamp without time zone)
to guard_app, guard_operator, guard_reader, guard_monitor;
grant execute on function guard.instant(timestamp with time zone)
to guard_app, guard_operator, guard_reader, guard_monitor;

revoke usage on schema public from guard_owner, guard_operator, guard_reader, guard_monitor;
revoke select, update on public.calls from guard_owner;
revoke select, update on public.appointments from guard_owner;
revoke select on public.companies from guard_owner;
-- of the table, and with it of each of its columns, whichever are still there
revoke select on public.calls from guard_operator, guard_reader, guard_monitor;
revoke select on public.appointments from guard_operator, guard_reader, guard_monitor;

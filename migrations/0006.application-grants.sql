-- What guard's functions and triggers may do to the application's tables: they run as guard_owner, never as superuser.
grant select, update on public.calls to guard_owner;
grant select, update on public.appointments to guard_owner;
grant select on public.companies to guard_owner;

-- Usually everybody may use schema public.
do $$
declare
    v_role text;
begin
    for v_role in
        select r.rolname
        from pg_catalog.pg_roles as r
        where
            r.rolname in ('guard_owner', 'guard_operator', 'guard_reader', 'guard_monitor')
            and not has_schema_privilege(r.oid, 'public', 'usage')
    loop
        execute format('grant usage on schema public to %I', v_role);
    end loop;
end
$$;

-- What the detection views read, for those who query them: every column but the phone numbers.
grant select (
    id, company_id, retell_call_id, direction, status, customer_id, customer_link_status, customer_link_method,
    customer_link_confidence, customer_linked_at, session_outcome, appointment_made, appointment_link_status,
    appointment_linked_at, booking_id, booking_confirmed, call_successful, booking_failed,
    requires_manual_processing, created_at, updated_at, guard_corrections
) on public.calls to guard_operator, guard_reader, guard_monitor;
grant select on public.appointments to guard_operator, guard_reader, guard_monitor;

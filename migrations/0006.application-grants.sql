-- What guard's functions and triggers may do to the application's tables: they run as guard_owner, never as superuser.
grant select, update, trigger on public.calls to guard_owner;
grant select, update, trigger on public.appointments to guard_owner;
grant select on public.companies to guard_owner;

-- What the detection views read, for those who query them: every column but the phone numbers.
grant select (
    id, company_id, retell_call_id, direction, status, customer_id, customer_link_status, customer_link_method,
    customer_link_confidence, customer_linked_at, session_outcome, appointment_made, appointment_link_status,
    appointment_linked_at, booking_id, booking_confirmed, call_successful, booking_failed,
    requires_manual_processing, created_at, updated_at, guard_corrections
) on public.calls to guard_operator, guard_reader, guard_monitor;
grant select on public.appointments to guard_operator, guard_reader, guard_monitor;

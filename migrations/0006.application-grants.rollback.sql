revoke usage on schema public from guard_owner, guard_operator, guard_reader, guard_monitor;
revoke select, update on public.calls from guard_owner;
revoke select, update on public.appointments from guard_owner;
revoke select on public.companies from guard_owner;
revoke select (
    id, company_id, retell_call_id, direction, status, customer_id, customer_link_status, customer_link_method,
    customer_link_confidence, customer_linked_at, session_outcome, appointment_made, appointment_link_status,
    appointment_linked_at, booking_id, booking_confirmed, call_successful, booking_failed,
    requires_manual_processing, created_at, updated_at, guard_corrections
) on public.calls from guard_operator, guard_reader, guard_monitor;
revoke select on public.appointments from guard_operator, guard_reader, guard_monitor;

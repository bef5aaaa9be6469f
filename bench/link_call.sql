-- The floor of one appointment, the statement being prepared already.
prepare link_call (bigint) as
update public.calls
set
    appointment_made = true,
    session_outcome = 'appointment_booked',
    appointment_link_status = 'linked',
    appointment_linked_at = now(),
    updated_at = now()
where id = $1;

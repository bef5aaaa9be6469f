-- The floor of a delete: what an application would write by hand, knowing which bookings it has just removed.
update public.calls as c
set
    appointment_made = false,
    session_outcome = 'appointment_removed',
    appointment_link_status = 'unlinked',
    appointment_linked_at = null,
    updated_at = now()
from bench.appointments as a
where
    a.id between $1 and $2
    and c.id = a.call_id
    and not exists (select from public.appointments as other where other.call_id = c.id)

-- The floor of an insert: what an application would write by hand, knowing which calls it has just booked.
update public.calls as c
set
    appointment_made = true,
    session_outcome = 'appointment_booked',
    appointment_link_status = 'linked',
    appointment_linked_at = now(),
    updated_at = now()
from bench.appointments as a
where a.id between $1 and $2 and c.id = a.call_id

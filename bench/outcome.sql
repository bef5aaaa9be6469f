-- What a measured write has led to: the new calls that say booked, and what guard had to record, which is nothing.
select
    count(*) filter (
        where c.appointment_made
        and c.session_outcome = 'appointment_booked'
        and c.appointment_link_status = 'linked'
    ),
    (select count(*) from guard.data_consistency_alerts) + (select count(*) from guard.faults)
from public.calls as c
where c.id > $1

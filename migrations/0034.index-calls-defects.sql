-- transactional: false
-- The calls that contradict themselves, whatever their age: finding them costs what they are, not what there is.
-- Each line is the condition of one rule's view, word for word.
create index concurrently if not exists guard_calls_defects
on public.calls (id)
where
direction is null
or (session_outcome = 'appointment_booked' and appointment_made is not true)
or (appointment_made and session_outcome <> 'appointment_booked')
or (appointment_made and appointment_link_status is distinct from 'linked')
or (appointment_link_status = 'linked' and appointment_made is not true)
or (
    customer_id is not null
    and (customer_link_status is null or customer_link_method is null or customer_link_confidence is null)
);

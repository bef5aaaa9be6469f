delete from guard.pending_checks as p
where exists (
    select from guard.pending_checks as q
    where (q.call_id, q.appointment_id) is not distinct from (p.call_id, p.appointment_id) and q.ctid > p.ctid
);
create unique index if not exists pending_checks_call_idx on guard.pending_checks (call_id);
create unique index if not exists pending_checks_appointment_idx on guard.pending_checks (appointment_id);

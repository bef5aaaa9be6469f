-- Calls, every second with its appointment, as sound as guard keeps them; no trigger runs while they are made.
set session_replication_role = replica;

insert into public.companies (id, name) values (1, 'company');

insert into public.calls (
    id, company_id, retell_call_id, direction, status, session_outcome, appointment_made, appointment_link_status,
    appointment_linked_at, booking_id
)
select
    n, 1, 'call_' || md5(n::text), 'inbound', 'ended',
    case n % 2 when 0 then 'appointment_booked' else 'abandoned' end,
    n % 2 = 0,
    case n % 2 when 0 then 'linked' end,
    case n % 2 when 0 then now() end,
    case n % 2 when 0 then left(md5('booking' || n), 22) end
from generate_series(1, current_setting('bench.calls')::integer) as n;

insert into public.appointments (id, company_id, call_id, calcom_v2_booking_id, source, status, created_at)
select n, 1, n as call_id, left(md5('booking' || n), 22), 'retell_webhook', 'booked', now()
from generate_series(2, current_setting('bench.calls')::integer, 2) as n;

reset session_replication_role;
vacuum (analyze) public.calls, public.appointments;

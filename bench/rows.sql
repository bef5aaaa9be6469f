-- What the benchmark writes, made beforehand: sound calls, and an appointment for each, in free slots.
create schema bench;
create table bench.calls (like public.calls);
create table bench.appointments (like public.appointments);

insert into public.companies (id, name)
select n, 'company ' || n
from generate_series(1, 20) as n;

insert into public.services (id, company_id, name)
select n, 1 + (n - 1) % 20, 'service ' || n
from generate_series(1, 100) as n;

insert into public.staff (id, company_id, name)
select n, 1 + (n - 1) % 20, 'staff ' || n
from generate_series(1, 200) as n;

-- The first p_history calls have their appointment already.
create procedure bench.make_rows(p_history integer, p_new integer)
language sql
as $$
    insert into bench.calls (
        id, company_id, retell_call_id, direction, status, from_number, to_number,
        session_outcome, appointment_made, appointment_link_status, appointment_linked_at,
        booking_confirmed, booking_failed, requires_manual_processing, created_at, updated_at
    )
    select
        n, 1 + n % 20, 'call_' || md5(n::text), 'inbound', 'ended',
        '+49151' || lpad(n::text, 8, '0'), '+4930' || lpad((1 + n % 20)::text, 6, '0'),
        case when n <= p_history then 'appointment_booked' end,
        n <= p_history,
        case when n <= p_history then 'linked' end,
        case when n <= p_history then moment end,
        false, false, false, moment, moment
    from generate_series(1, p_history + p_new) as n
    cross join lateral (select timestamp '2025-01-01' + n * interval '20 seconds' as moment) as m;

    insert into bench.appointments (
        id, company_id, call_id, service_id, staff_id, calcom_v2_booking_id, source, status,
        starts_at, ends_at, created_at, updated_at
    )
    select
        n, 1 + n % 20, n, 1 + n % 100, 1 + n % 200, left(md5('booking' || n), 22), 'retell_webhook', 'booked',
        slot, slot + interval '30 minutes', moment, moment
    from generate_series(1, p_history + p_new) as n
    cross join lateral (
        select
            timestamp '2025-01-01' + n * interval '20 seconds' as moment,
            timestamp '2025-02-01' + (n / 200) * interval '30 minutes' as slot
    ) as m;
$$;

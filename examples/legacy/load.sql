-- Fills the legacy schema with legacy.calls calls (a setting; 10000 unless set; a multiple of 1000), deterministic, and
-- dirty in known places: each class of defects has its own residue of the call's id, see README.md.
begin;

create temporary table size on commit drop as
select coalesce(nullif(current_setting('legacy.calls', true), ''), '10000')::bigint as calls;

insert into public.companies (id, name, created_at, updated_at)
select
    g.id,
    'Company ' || g.id,
    localtimestamp as created_at,
    localtimestamp as updated_at
from generate_series(1, 20) as g (id);

insert into public.services (id, company_id, name, created_at, updated_at)
select
    g.id,
    (g.id - 1) % 20 + 1,
    'Service ' || g.id,
    localtimestamp as created_at,
    localtimestamp as updated_at
from generate_series(1, 60) as g (id);

insert into public.staff (id, company_id, name, created_at, updated_at)
select
    g.id,
    (g.id - 1) % 20 + 1,
    'Staff ' || g.id,
    localtimestamp as created_at,
    localtimestamp as updated_at
from generate_series(1, 100) as g (id);

insert into public.customers (id, company_id, name, phone, created_at, updated_at)
select
    g.id,
    (g.id - 1) % 20 + 1,
    'Customer ' || g.id,
    '+4930' || lpad(g.id::text, 7, '0'),
    localtimestamp as created_at,
    localtimestamp as updated_at
from generate_series(1, 2000) as g (id);

-- One call every 20 seconds, the last one now.
insert into public.calls (
    id, company_id, retell_call_id, direction, status, from_number, to_number, customer_id,
    customer_link_status, customer_link_method, customer_link_confidence, customer_linked_at,
    session_outcome, appointment_made, appointment_link_status, appointment_linked_at, booking_id,
    created_at, updated_at
)
select
    g.id,
    (g.id - 1) % 20 + 1,
    'call_' || md5(g.id::text),
    case when g.residue = 1 then null when g.id % 10 = 9 then 'outbound' else 'inbound' end,
    'ended',
    '+4915' || lpad((g.id * 7919 % 100000000)::text, 8, '0'),
    '+493083793369',
    case when g.linked or g.residue = 7 then (g.id - 1) % 20 + 1 + 20 * g.residue end,
    case when g.linked then 'linked' end,
    case when g.linked then 'phone_match' end,
    case when g.linked then 100.00 end,
    case when g.linked then g.made_at end,
    case
        when g.residue in (2, 3) then 'appointment_booked'
        when g.residue = 4 then 'abandoned'
        when g.residue in (5, 6, 8) then 'information_only'
        when g.booked then 'appointment_booked'
        when g.id % 2 = 0 then 'information_only'
        when g.id % 5 = 0 then null
        else 'abandoned'
    end,
    g.booked or g.residue in (3, 4),
    case when g.booked or g.residue in (3, 4, 8) then 'linked' end,
    case when g.booked or g.residue in (3, 4, 8) then g.made_at end,
    case when g.booked or g.residue in (4, 5) then 'bk_' || g.id end,
    g.made_at as created_at,
    g.made_at as updated_at
from (
    select
        i.id,
        i.id % 100 as residue,
        i.id % 100 between 40 and 79 as booked,
        i.id % 3 = 0 and i.id % 100 <> 7 as linked,
        localtimestamp(0) - (size.calls - i.id) * interval '20 seconds' as made_at
    from size
    cross join lateral generate_series(1, size.calls) as i (id)
) as g;

-- Each staff member works one slot per hundred calls; every g % 1000 = 560 takes a slot that is already taken.
insert into public.appointments (
    company_id, call_id, customer_id, service_id, staff_id, calcom_v2_booking_id, source, status,
    starts_at, ends_at, created_at, updated_at
)
select
    case when g.id % 1000 = 50 then g.id % 20 + 1 else (g.id - 1) % 20 + 1 end,
    case when g.id % 100 not in (5, 6) then g.id end,
    null,
    (g.id - 1) % 60 + 1,
    (g.id - 1) % 100 + 1,
    case
        when g.id % 100 = 6 then 'bk_lost_' || g.id
        when g.id % 1000 = 55 then 'bk_' || (g.id - 1)
        else 'bk_' || g.id
    end,
    'retell_webhook',
    'booked',
    g.slot,
    g.slot + interval '30 minutes',
    g.called_at + interval '2 seconds' as created_at,
    g.called_at + interval '2 seconds' as updated_at
from (
    select
        c.id,
        c.created_at as called_at,
        timestamp '2027-01-04 08:00'
        + ((c.id - case when c.id % 1000 = 560 then 100 else 0 end) / 100) * interval '1 hour' as slot
    from public.calls as c
    where c.id % 100 in (4, 5, 6) or c.id % 100 between 40 and 79
) as g
order by g.id;

select
    setval('public.companies_id_seq', (select max(id) from public.companies)) as companies,
    setval('public.customers_id_seq', (select max(id) from public.customers)) as customers,
    setval('public.services_id_seq', (select max(id) from public.services)) as services,
    setval('public.staff_id_seq', (select max(id) from public.staff)) as staff,
    setval('public.calls_id_seq', (select max(id) from public.calls)) as calls;

commit;

analyze public.companies, public.customers, public.services, public.staff, public.calls, public.appointments;

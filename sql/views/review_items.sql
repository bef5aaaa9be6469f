-- provides: view guard_bi.review_items
-- provides: view guard_bi.review_items_daily
--
-- What a person must decide. What people write about it is left out: it is free text.

create or replace view guard_bi.review_items
with (security_invoker = true)
as
select
    q.id as item_id,
    q.call_id,
    c.company_id::bigint as company_id,
    q.retell_call_id,
    q.reason,
    q.priority,
    q.status,
    q.assignee,
    q.attempts,
    q.created_at,
    (q.created_at at time zone z.value)::date as created_date,
    q.assigned_at,
    (q.assigned_at at time zone z.value)::date as assigned_date,
    q.resolved_at,
    (q.resolved_at at time zone z.value)::date as resolved_date,
    extract(epoch from q.resolved_at - q.created_at) / 60 as resolution_minutes
from guard.manual_review_queue as q
cross join guard.settings as z
left join public.calls as c on q.call_id = c.id
where z.name = 'app_timezone';

comment on view guard_bi.review_items is 'Every item of the review queue.';
comment on column guard_bi.review_items.item_id is 'The item.';
comment on column guard_bi.review_items.call_id is 'The call; null where none is known.';
comment on column guard_bi.review_items.company_id is 'The company that it belongs to.';
comment on column guard_bi.review_items.retell_call_id is 'The phone agent''s id of the call.';
comment on column guard_bi.review_items.reason is 'Why a person is asked.';
comment on column guard_bi.review_items.priority is '1, the most urgent, to 5.';
comment on column guard_bi.review_items.status is 'pending, in_progress or resolved.';
comment on column guard_bi.review_items.assignee is 'Who took it, or resolved it.';
comment on column guard_bi.review_items.attempts is 'How often it was retried automatically.';
comment on column guard_bi.review_items.created_at is 'When it was queued.';
comment on column guard_bi.review_items.created_date is 'The day of created_at, in settings.app_timezone.';
comment on column guard_bi.review_items.assigned_at is 'When it was taken last.';
comment on column guard_bi.review_items.assigned_date is 'The day of assigned_at, in settings.app_timezone.';
comment on column guard_bi.review_items.resolved_at is 'When it was resolved.';
comment on column guard_bi.review_items.resolved_date is 'The day of resolved_at, in settings.app_timezone.';
comment on column guard_bi.review_items.resolution_minutes is 'From the queueing to the resolution, in minutes.';

grant select on guard_bi.review_items to guard_operator, guard_reader, guard_monitor;

create or replace view guard_bi.review_items_daily
with (security_invoker = true)
as
select
    q.created_date,
    q.company_id,
    q.reason,
    q.status,
    count(*) as items,
    round(avg(q.resolution_minutes), 3) as mean_resolution_minutes
from guard_bi.review_items as q
group by q.created_date, q.company_id, q.reason, q.status;

comment on view guard_bi.review_items_daily is
'Items by the day on which they were queued, one row per day, company, reason and status.';
comment on column guard_bi.review_items_daily.created_date is 'The day, in settings.app_timezone.';
comment on column guard_bi.review_items_daily.company_id is 'The company that it belongs to.';
comment on column guard_bi.review_items_daily.reason is 'Why a person is asked.';
comment on column guard_bi.review_items_daily.status is 'Their status now: pending, in_progress or resolved.';
comment on column guard_bi.review_items_daily.items is 'How many items.';
comment on column guard_bi.review_items_daily.mean_resolution_minutes is
'From the queueing to the resolution, on average, in minutes.';

grant select on guard_bi.review_items_daily to guard_operator, guard_reader, guard_monitor;

-- provides: function guard.mask_phones(text)
-- provides: function guard.mask_value(jsonb)
-- provides: function guard.notify(text, text, text, bigint, bigint, text)
-- provides: function guard.due_notifications(timestamp with time zone)
-- provides: function guard.message_sections(timestamp with time zone)
-- provides: function guard.bundle_notifications(text[], timestamp with time zone)
-- provides: function guard.claim_delivery(text, timestamp with time zone)
-- provides: function guard.settle_delivery(bigint, integer, text, timestamp with time zone)
-- provides: function guard.requeue_deliveries(bigint)
-- provides: function guard.discard_delivery(bigint)
--
-- The way of a message: guard.notify writes an event into the outbox, in the transaction that caused it. A sender
-- bundles what is due into messages, one delivery for each channel; claims a delivery, sends it, and settles it.
-- A delivery is made at least once: a sender that dies holds it until its lease ends, and then another one sends it.
-- Nothing is dropped by a throttle, only gathered. Times are passed in, so that a test need not wait.
-- Raises ZG601 (no channel, or an address in place of a label), ZG602 (no such delivery in a state for this).

-- In doubt a number is masked; what is surely none stays: times, uuids, numbers of less than nine digits that do not
-- look dialled. Tokens are taken from left to right, each the longest that fits.
create or replace function guard.mask_phones(p_text text)
returns text
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select case
        when p_text ~ '(?:\d\D{0,3}){7}' then (
            select
                string_agg(
                    coalesce(t.part[1], '***' || right(regexp_replace(t.part[2], '\D', '', 'g'), 2), t.part[3]),
                    '' order by t.place
                )
            from regexp_matches(
                p_text,
                '('
                || '\m[[:xdigit:]]{8}-(?:[[:xdigit:]]{4}-){3}[[:xdigit:]]{12}\M'
                || '|\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?'
                || '|\d\d?[./]\d\d?[./]\d{4}(?: \d\d:\d\d(?::\d\d)?)?'
                || '|0\.\d+'
                || ')|('
                || '(?:\+|00)[ (]?[1-9](?:[\s./()-]{0,3}\d){5,}'
                || '|\(?0[1-9]\d{0,4}\)?(?:[\s./-]{0,3}\d){5,}'
                || '|\(?[2-9]\d\d\)?[\s.-]\d{3}[\s.-]\d{4}'
                || '|\d{9,}'
                || ')|([[:alpha:]_]+|\d+|\W)',
                'g'
            ) with ordinality as t (part, place)
        )
        else p_text
    end
$$;

comment on function guard.mask_phones(text) is
'The text with whatever looks like a phone number masked but for its last two digits.';

-- A number is an id, or an amount.
create or replace function guard.mask_value(p_value jsonb)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select case
        when jsonb_typeof(p_value)::text = any('{number,boolean,null}') then p_value
        else to_jsonb(guard.mask_phones(p_value #>> '{}'))
    end
$$;

comment on function guard.mask_value(jsonb) is
'A value of a column, as alerts keep it, with phone numbers masked in texts.';

-- It goes out only if the caller's transaction commits.
create or replace function guard.notify(
    p_severity text, p_kind text, p_entity_type text, p_entity_id bigint, p_company_id bigint, p_message text
)
returns void
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    insert into guard.notifications (severity, kind, entity_type, entity_id, company_id, message)
    values (
        p_severity, p_kind, p_entity_type, p_entity_id, p_company_id,
        left(guard.mask_phones(coalesce(p_message, p_kind)), 100000)
    )
$$;

comment on function guard.notify(text, text, text, bigint, bigint, text) is
'Write an event to the outbox, phone numbers masked.';

-- Critical ones of one kind wait while a message of that kind is younger than alert_throttle_minutes, and one call or
-- appointment while a message about it is younger than its rule's alert_throttle. All others wait until the oldest has
-- waited for digest_hours. What a clock that was set back leaves in the future does not wait for it.
create or replace function guard.due_notifications(p_now timestamptz)
returns table (id bigint, bundle text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select n.id, 'critical:' || n.kind
    from guard.notifications as n
    left join guard.rules as r on n.kind = r.rule
    where
        n.message_id is null
        and n.severity = 'critical'
        and n.kind <> 'daily_report'
        and not exists (
            select from guard.messages as m
            where
                m.kind = n.kind
                and m.severity = 'critical'
                and m.throttled_from > p_now - guard.setting('alert_throttle_minutes')::numeric * interval '1 minute'
        )
        and not exists (
            select
            from guard.notifications as told
            inner join guard.messages as m on told.message_id = m.id
            where
                told.kind = n.kind
                and told.entity_type = n.entity_type
                and told.entity_id = n.entity_id
                and m.throttled_from > p_now - r.alert_throttle
        )
    union all
    select n.id, 'digest'
    from guard.notifications as n
    where
        n.message_id is null
        and n.severity <> 'critical'
        and n.kind <> 'daily_report'
        and exists (
            select from guard.notifications as oldest
            where
                oldest.message_id is null
                and oldest.severity <> 'critical'
                and oldest.kind <> 'daily_report'
                and (
                    oldest.created_at <= p_now - guard.setting('digest_hours')::numeric * interval '1 hour'
                    or oldest.created_at > p_now + interval '1 minute'
                )
        )
    union all
    select n.id, 'daily_report'
    from guard.notifications as n
    where n.message_id is null and n.kind = 'daily_report'
$$;

comment on function guard.due_notifications(timestamptz) is
'What of the outbox is to go out now, and in which message.';

-- A section has at most five samples and five companies, however much has gathered. A call or appointment that is in
-- the outbox several times counts once.
create or replace function guard.message_sections(p_now timestamptz)
returns table (bundle text, kind text, severity text, total bigint, section text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
    with due as (
        select
            d.bundle,
            n.*,
            row_number() over (
                partition by d.bundle, n.kind, n.entity_type, n.entity_id, case when n.entity_id is null then n.message end
                order by n.id
            ) as repeated
        from guard.due_notifications(p_now) as d
        inner join guard.notifications as n on d.id = n.id
    ),
    counted as (
        select d.*, row_number() over (partition by d.bundle, d.kind order by d.id) as place
        from due as d
        where d.repeated = 1
    ),
    kinds as (
        select
            c.bundle,
            c.kind,
            max(c.severity) as severity,
            count(*) as total,
            min(c.created_at) at time zone 'UTC' as since,
            max(c.created_at) at time zone 'UTC' as until,
            array_agg(distinct c.company_id order by c.company_id) filter (where c.company_id is not null) as companies,
            string_agg(c.message, e'\n\n' order by c.id) filter (where c.bundle = 'daily_report') as report,
            string_agg(
                '- '
                || case
                    when position(c.entity_id::text in c.message) = 0 then format('%s %s: ', c.entity_type, c.entity_id)
                    else ''
                end
                || left(c.message, 300),
                e'\n' order by c.id
            ) filter (where c.place <= 5) as samples
        from counted as c
        group by c.bundle, c.kind
    )
    select
        k.bundle,
        k.kind,
        k.severity,
        k.total,
        coalesce(
            k.report,
            concat_ws(
                e'\n',
                case when k.bundle = 'digest' then format('%s: %s new', k.kind, k.total) end,
                k.samples,
                case when k.total > 5 then format('- and %s more', k.total - 5) end,
                to_char(k.since, 'YYYY-MM-DD HH24:MI')
                || case when k.until >= k.since + interval '1 minute' then to_char(k.until, '" to "YYYY-MM-DD HH24:MI') else '' end
                || ' UTC'
                || coalesce(
                    case when cardinality(k.companies) = 1 then ', company ' else ', companies ' end
                    || array_to_string(k.companies[1:5], ', ')
                    || case when cardinality(k.companies) > 5 then format(' and %s more', cardinality(k.companies) - 5) else '' end,
                    ''
                ),
                'To do: ' || r.runbook
            )
        )
    from kinds as k
    left join guard.rules as r on k.kind = r.rule
$$;

comment on function guard.message_sections(timestamptz) is
'What is due, as text: a section for each kind, with a count, samples, companies and what to do.';

-- Returns how many messages it made. p_channels: the labels of all channels; a message has a delivery for each.
-- Locks: an advisory lock that is tried; who does not get it leaves the work to who has it.
create or replace function guard.bundle_notifications(p_channels text[], p_now timestamptz = now())
returns integer
language plpgsql
volatile
security definer -- a sender's login need not write the outbox otherwise
set search_path = pg_catalog, pg_temp
as $$
declare
    v_channels constant text[] := array(select distinct c.label from unnest(p_channels) as c (label));
    v_deliveries integer;
begin
    if v_channels = '{}' or exists (
        select from unnest(v_channels) as c (label)
        where c.label is null or c.label !~ '^[a-z0-9+.-]{1,40}:[0-9a-f]{8}$'
    ) then
        raise exception using
            errcode = 'ZG601',
            message = 'messages go to channels, named by their labels',
            hint = 'A label is a scheme and eight hexadecimal digits, as in slack:0a1b2c3d; never an address.';
    end if;
    if not pg_try_advisory_xact_lock(hashtext('guard.bundle_notifications')) then
        return 0;
    end if;
    -- the clock was set back: the throttle starts anew, and lasts no longer than it would
    update guard.messages as m set throttled_from = p_now where m.throttled_from > p_now;

    with sections as materialized (
        select s.* from guard.message_sections(p_now) as s
    ),
    bundles as materialized (
        select
            s.bundle,
            nextval('guard.messages_id_seq') as message_id,
            max(s.severity) as severity,
            sum(s.total) as total,
            count(*) as kinds,
            min(s.kind) as kind,
            string_agg(s.section, e'\n\n' order by s.total desc, s.kind) as body
        from sections as s
        group by s.bundle
    ),
    told as (
        update guard.notifications as n
        set message_id = b.message_id
        from guard.due_notifications(p_now) as d
        inner join bundles as b on d.bundle = b.bundle
        where n.id = d.id
    ),
    messages as (
        insert into guard.messages (id, kind, severity, title, body, notifications, throttled_from)
        select
            b.message_id,
            case when b.bundle = 'digest' then 'digest' else b.kind end,
            b.severity,
            case
                when b.bundle = 'digest'
                    then format('Digest: %s new of %s %s', b.total, b.kinds, case b.kinds when 1 then 'kind' else 'kinds' end)
                when b.bundle = 'daily_report' then 'Daily report'
                else format('%s: %s new', b.kind, b.total)
            end,
            b.body,
            b.total,
            p_now
        from bundles as b
    )
    insert into guard.deliveries (message_id, channel, next_attempt_at)
    select b.message_id, c.label, p_now
    from bundles as b
    cross join unnest(v_channels) as c (label);
    get diagnostics v_deliveries = row_count;
    return v_deliveries / cardinality(v_channels);
end
$$;

comment on function guard.bundle_notifications(text[], timestamptz) is
'Make messages of what is due in the outbox, with a delivery for each channel; returns how many messages.';

-- Fresh deliveries first, then the gravest: one that cannot be delivered never stands in the way of the others.
-- The attempt is counted before it is made, so that one that kills its sender ends, too.
-- Locks: the delivery; skips what another session has locked.
create or replace function guard.claim_delivery(p_channel text, p_now timestamptz = now())
returns table (id bigint, attempt integer, severity text, title text, body text, timeout_seconds numeric)
language plpgsql
volatile
security definer -- a sender's login may change a delivery in these steps only
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    c_timeout constant numeric := guard.setting('delivery_timeout_seconds')::numeric;
    c_most_attempts constant numeric := guard.setting('max_delivery_attempts')::numeric;
    -- no wait is longer: what is due later than that was written before the clock was set back
    c_horizon constant timestamptz := p_now + interval '2 hours';
begin
    update guard.deliveries as d
    set status = 'dead', last_error = coalesce(d.last_error, 'The sender ended before it could tell.')
    where
        d.channel = p_channel
        and d.status = 'pending'
        and d.attempts >= c_most_attempts
        and (d.next_attempt_at <= p_now or d.next_attempt_at > c_horizon);
    return query
    update guard.deliveries as d
    set attempts = d.attempts + 1, next_attempt_at = p_now + (c_timeout + 60) * interval '1 second'
    from guard.messages as m
    where
        d.message_id = m.id
        and d.id = (
            select w.id
            from guard.deliveries as w
            inner join guard.messages as wm on w.message_id = wm.id
            where
                w.channel = p_channel
                and w.status = 'pending'
                and (w.next_attempt_at <= p_now or w.next_attempt_at > c_horizon)
            order by w.attempts, wm.severity <> 'critical', w.id
            limit 1
            for update of w skip locked
        )
    returning d.id, d.attempts, m.severity, m.title, m.body, c_timeout;
end
$$;

comment on function guard.claim_delivery(text, timestamptz) is
'Take what is to be sent next on a channel, for as long as sending may take; no row when nothing is due.';

-- A late success counts; a late failure does not: another sender has taken over.
-- Locks: the delivery.
create or replace function guard.settle_delivery(
    p_id bigint, p_attempt integer, p_error text = null, p_now timestamptz = now()
)
returns text
language plpgsql
volatile
security definer -- a sender's login may change a delivery in these steps only
set search_path = pg_catalog, pg_temp
as $$
declare
    v_status text;
begin
    update guard.deliveries as d
    set
        status = case
            when p_error is null then 'sent'
            when d.attempts >= guard.setting('max_delivery_attempts')::numeric then 'dead'
            else 'pending'
        end,
        sent_at = case when p_error is null then p_now end,
        last_error = left(guard.mask_phones(p_error), 500),
        next_attempt_at = case
            when p_error is null then d.next_attempt_at
            else p_now + least(2 ^ least(d.attempts - 1, 10), 60) * interval '1 minute'
        end
    where
        d.id = p_id
        and case
            when p_error is null then d.status in ('pending', 'dead')
            else d.status = 'pending' and d.attempts = p_attempt
        end
    returning d.status into v_status;
    if not found then
        select d.status into v_status from guard.deliveries as d where d.id = p_id;
    end if;
    if v_status is null then
        raise exception using
            errcode = 'ZG602', message = format('there is no delivery %s', p_id), hint = 'guard notify --list';
    end if;
    return v_status;
end
$$;

comment on function guard.settle_delivery(bigint, integer, text, timestamptz) is
'Say how an attempt went: an error, or null where the channel took it; returns the status that follows.';

-- Locks: the deliveries.
create or replace function guard.requeue_deliveries(p_id bigint = null)
returns integer
language plpgsql
volatile
security definer -- operators may change a delivery only together with its line in the audit log
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    with requeued as (
        update guard.deliveries as d
        set status = 'pending', attempts = 0, next_attempt_at = now()
        where d.status = 'dead' and d.id = coalesce(p_id, d.id)
        returning d.*
    )
    insert into guard.audit_log (action, object, before)
    select
        'requeue_delivery' as action,
        'delivery ' || r.id as object,
        jsonb_build_object('channel', r.channel, 'last_error', r.last_error) as before
    from requeued as r;
    get diagnostics v_count = row_count;
    if v_count = 0 and p_id is not null then
        raise exception using
            errcode = 'ZG602', message = format('no delivery %s was given up', p_id), hint = 'guard notify --list';
    end if;
    return v_count;
end
$$;

comment on function guard.requeue_deliveries(bigint) is
'Have a delivery that was given up tried again, or all of them; returns how many.';

-- Locks: the delivery.
create or replace function guard.discard_delivery(p_id bigint)
returns void
language plpgsql
volatile
security definer -- operators may change a delivery only together with its line in the audit log
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before guard.deliveries;
begin
    select d.* into v_before from guard.deliveries as d where d.id = p_id for no key update;
    if not found or v_before.status not in ('pending', 'dead') then
        raise exception using
            errcode = 'ZG602', message = format('no delivery %s waits or was given up', p_id), hint = 'guard notify --list';
    end if;
    update guard.deliveries as d set status = 'discarded' where d.id = p_id;
    insert into guard.audit_log (action, object, before, after)
    values (
        'discard_delivery', 'delivery ' || p_id,
        jsonb_build_object('channel', v_before.channel, 'status', v_before.status),
        jsonb_build_object('status', 'discarded')
    );
end
$$;

comment on function guard.discard_delivery(bigint) is
'Let a delivery go that nobody needs, or whose channel is no more.';

grant execute on function guard.mask_phones(text) to guard_app, guard_operator, guard_reader, guard_monitor;
grant execute on function guard.mask_value(jsonb) to guard_operator, guard_reader, guard_monitor;
grant execute on function guard.due_notifications(timestamptz) to guard_operator, guard_monitor;
grant execute on function guard.bundle_notifications(text[], timestamptz) to guard_operator;
grant execute on function guard.claim_delivery(text, timestamptz) to guard_operator;
grant execute on function guard.settle_delivery(bigint, integer, text, timestamptz) to guard_operator;
grant execute on function guard.requeue_deliveries(bigint) to guard_operator;
grant execute on function guard.discard_delivery(bigint) to guard_operator;

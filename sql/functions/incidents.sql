-- provides: function guard.open_incidents(jsonb)
-- provides: function guard.resolve_incidents(text[], text)
-- provides: function guard.set_incident(bigint, text, text, timestamp with time zone, text, boolean)
--
-- One incident per defect. Detection opens and refreshes it, and resolves it once the defect is gone; a person may
-- acknowledge, snooze, assign or resolve it, or say that nothing was wrong.
-- Raises ZG401 (no such incident), ZG402 (no such status, or a snooze that is over), ZG403 (nothing to change, or
-- resolved already).

-- p_found: [{"rule", "severity", "entity_type", "entity_id", "company_id", "subject", "occurred_at", "description",
-- "details"}]; where there is no entity_id the subject tells incidents of one rule apart. Returns how many are new, or
-- have come back after they were resolved: those get an alert, unless the write that made the defect left one, and a
-- message in the outbox; so does one whose snooze is over, which is not new. A rule keeps at most incident_sample_cap
-- standing incidents. What a person called false stays quiet until the row is written again; what is no row, a view that
-- fails say, does not. A defect that stands as it was is written once a minute, not each time it is seen.
-- Locks: an advisory lock, one session at a time: so what it reads before it writes holds.
create or replace function guard.open_incidents(p_found jsonb)
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    c_cap constant integer := guard.setting('incident_sample_cap')::integer;
    v_fresh integer;
begin
    perform pg_advisory_xact_lock(hashtext('guard.open_incidents'));
    with found as (
        select
            f.*,
            concat_ws(':', f.rule, f.entity_type, coalesce(f.entity_id::text, f.subject)) as fingerprint
        from jsonb_to_recordset(p_found) as f (
            rule text, severity text, entity_type text, entity_id bigint, company_id bigint, subject text,
            occurred_at timestamptz, description text, details jsonb
        )
    ),
    known as (
        select
            f.*,
            i.id is null as is_new,
            coalesce(i.status = 'resolved', false) as is_back,
            coalesce(i.status = 'snoozed', false) as was_snoozed,
            i.id is not null
            and i.status <> 'resolved'
            and coalesce(i.snoozed_until > now(), true)
            and i.last_seen_at >= now() - interval '1 minute'
            and coalesce(i.occurred_at >= f.occurred_at, true)
            and i.details = coalesce(f.details, '{}') as is_known,
            coalesce(i.is_false and f.occurred_at = i.occurred_at, false) as is_quiet,
            row_number() over (
                partition by f.rule, coalesce(i.status = 'resolved', true) order by f.occurred_at desc nulls last
            ) as place
        from found as f
        left join guard.incidents as i on f.fingerprint = i.fingerprint
    ),
    standing as (
        select i.rule, count(*) as incidents
        from guard.incidents as i
        where i.status <> 'resolved' and i.rule = any(array(select distinct f.rule from found as f))
        group by i.rule
    ),
    kept as (
        select k.*
        from known as k
        left join standing as s on k.rule = s.rule
        where
            not k.is_quiet
            and not k.is_known
            and (not (k.is_new or k.is_back) or k.place <= c_cap - coalesce(s.incidents, 0))
    ),
    written as (
        insert into guard.incidents as i (
            fingerprint, rule, severity, entity_type, entity_id, company_id, description, details, occurred_at,
            last_notified_at
        )
        select
            k.fingerprint, k.rule, k.severity, k.entity_type, k.entity_id, k.company_id, k.description,
            coalesce(k.details, '{}') as details, k.occurred_at,
            case when k.severity <> 'info' then now() end as last_notified_at
        from kept as k
        on conflict (fingerprint) do update set
            severity = excluded.severity,
            company_id = excluded.company_id,
            description = excluded.description,
            details = excluded.details,
            occurrences = i.occurrences
            + (i.status = 'resolved' or coalesce(i.occurred_at < excluded.occurred_at, false))::integer,
            occurred_at = excluded.occurred_at,
            first_seen_at = case when i.status = 'resolved' then now() else i.first_seen_at end,
            last_seen_at = now(),
            status = case when i.status = 'resolved' or i.snoozed_until <= now() then 'open' else i.status end,
            snoozed_until = case when i.snoozed_until > now() then i.snoozed_until end,
            is_false = false,
            acknowledged_at = case when i.status <> 'resolved' then i.acknowledged_at end,
            resolved_at = null,
            resolved_by = null,
            last_notified_at = case
                when i.status = 'resolved' or i.snoozed_until <= now() then excluded.last_notified_at
                else i.last_notified_at
            end,
            updated_at = now()
        returning i.*
    ),
    fresh as (
        select w.*, k.is_new or k.is_back as is_news
        from written as w
        inner join kept as k on w.fingerprint = k.fingerprint
        where k.is_new or k.is_back or (k.was_snoozed and w.status = 'open')
    ),
    logged as (
        insert into guard.data_consistency_alerts (
            alert_type, severity, entity_type, entity_id, company_id, description, metadata
        )
        select
            f.rule, f.severity, f.entity_type, f.entity_id, f.company_id, f.description,
            jsonb_build_object('mode', 'detect', 'details', f.details, 'occurred_at', f.occurred_at)
        from fresh as f
        where f.is_news and not exists (
            select from guard.data_consistency_alerts as a
            where
                a.alert_type = f.rule
                and a.entity_type = f.entity_type
                and a.entity_id = f.entity_id
                and not a.auto_corrected
                and a.detected_at >= f.occurred_at - interval '1 minute'
        )
    ),
    -- Not through guard.notify, which would take an id of many digits for a phone number. Where there is no id, the
    -- description names the job or rule, and the error says why.
    told as (
        insert into guard.notifications (severity, kind, entity_type, entity_id, company_id, message)
        select
            f.severity, f.rule, f.entity_type, f.entity_id, f.company_id,
            concat_ws(
                ': ', f.rule, f.entity_type || ' ' || f.entity_id, d.description,
                case when f.entity_id is null then guard.mask_phones(f.details ->> 'error') end
            ) || case when f.is_news then '' else '; it was snoozed, and still stands' end
        from fresh as f
        inner join (
            select m.description as unmasked, guard.mask_phones(m.description) as description
            from (select distinct g.description from fresh as g) as m
        ) as d on f.description = d.unmasked
        where f.severity <> 'info'
    )
    select count(*) into v_fresh from fresh as f where f.is_news;
    return v_fresh;
end
$$;

comment on function guard.open_incidents(jsonb) is
'Open or refresh the incident of each defect that was found; returns how many are new or have come back.';

-- Locks: the incidents.
create or replace function guard.resolve_incidents(p_fingerprints text[], p_by text = 'guard')
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_resolved integer;
begin
    update guard.incidents as i
    set status = 'resolved', snoozed_until = null, resolved_at = now(), resolved_by = p_by, updated_at = now()
    where i.fingerprint = any(p_fingerprints) and i.status <> 'resolved';
    get diagnostics v_resolved = row_count;
    return v_resolved;
end
$$;

comment on function guard.resolve_incidents(text[], text) is 'Resolve incidents whose defects are gone.';

-- What a person does about an incident; null leaves a thing as it is. Locks: the incident.
create or replace function guard.set_incident(
    p_id bigint,
    p_status text = null,
    p_assignee text = null,
    p_snoozed_until timestamp with time zone = null,
    p_note text = null,
    p_is_false boolean = null
)
returns guard.incidents
language plpgsql
volatile
security definer -- operators may change an incident only together with its line in the audit log
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before guard.incidents;
    v_after guard.incidents;
begin
    if num_nonnulls(p_status, p_assignee, p_note, p_is_false) = 0 then
        raise exception using
            errcode = 'ZG403',
            message = 'nothing was said that is to change',
            hint = 'Give a status, an assignee or a note.';
    end if;
    if p_status not in ('open', 'acknowledged', 'snoozed', 'resolved') then
        raise exception using
            errcode = 'ZG402',
            message = format('%L is no status of an incident', left(p_status, 60)),
            hint = 'Use open, acknowledged, snoozed or resolved.';
    end if;
    if p_status = 'snoozed' and coalesce(p_snoozed_until <= now(), true) then
        raise exception using
            errcode = 'ZG402',
            message = 'an incident is snoozed until a moment that is still to come',
            hint = 'Say until when, as in: guard incidents snooze 17 2h.';
    end if;
    if btrim(p_assignee) = '' or length(p_assignee) > 200 or length(p_note) > 2000 then
        raise exception using
            errcode = 'ZG402',
            message = 'an assignee has 1 to 200 characters, a note at most 2000',
            hint = 'Give a name; say the rest in fewer words.';
    end if;
    select i.* into v_before from guard.incidents as i where i.id = p_id for no key update;
    if not found then
        raise exception using
            errcode = 'ZG401',
            message = format('there is no incident %s', coalesce(p_id::text, 'null')),
            hint = 'guard incidents list shows them.';
    end if;
    if v_before.status = 'resolved' and p_status in ('acknowledged', 'snoozed') then
        raise exception using
            errcode = 'ZG403',
            message = format('incident %s is resolved already', p_id),
            hint = 'It opens again by itself if the defect comes back.';
    end if;
    update guard.incidents as i
    set
        status = coalesce(p_status, i.status),
        snoozed_until = case
            when p_status = 'snoozed' then p_snoozed_until
            when p_status is null then i.snoozed_until
        end,
        assignee = coalesce(p_assignee, i.assignee),
        note = coalesce(p_note, i.note),
        is_false = coalesce(p_is_false, i.is_false),
        acknowledged_at = case
            when p_status in ('acknowledged', 'snoozed', 'resolved') then coalesce(i.acknowledged_at, now())
            else i.acknowledged_at
        end,
        resolved_at = case
            when coalesce(p_status, i.status) = 'resolved' then coalesce(i.resolved_at, now())
        end,
        resolved_by = case
            when coalesce(p_status, i.status) = 'resolved' then coalesce(i.resolved_by, session_user)
        end,
        updated_at = now()
    where i.id = p_id
    returning i.* into v_after;
    insert into guard.audit_log (action, object, reason, before, after)
    select
        'set_incident', 'incident ' || p_id, p_note,
        jsonb_object_agg(b.key, b.value), jsonb_object_agg(b.key, to_jsonb(v_after) -> b.key)
    from jsonb_each(to_jsonb(v_before)) as b
    where to_jsonb(v_after) -> b.key is distinct from b.value and b.key <> 'updated_at';
    return v_after;
end
$$;

comment on function guard.set_incident(bigint, text, text, timestamp with time zone, text, boolean) is
'What a person does about an incident: acknowledge, snooze, assign, resolve, call it false, or leave a note.';

grant execute on function guard.set_incident(bigint, text, text, timestamp with time zone, text, boolean)
to guard_operator;

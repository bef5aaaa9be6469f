-- provides: function guard.changes(jsonb, jsonb)
-- provides: function guard.log_repairs(text, text, jsonb)
-- provides: function guard.rewrite_calls(bigint[])
-- provides: function guard.rewrite_appointments(bigint[])
-- provides: function guard.repair_missing_appointment(bigint[])
-- provides: function guard.repair_inconsistent_link_status(bigint[])
-- provides: function guard.queue_violations(text, bigint[], text, boolean)
-- provides: function guard.lock_for_repair(text, bigint[])
-- provides: function guard.repair(text, bigint[])
--
-- Repairing what stands in the tables. guard.repair is the way in: it locks the rows, judges them again, has the
-- function that the rule names in repair_with repair them, and queues for a person what is still wrong, once. A repair
-- function takes the ids of locked rows and returns how many it left to a person. Every change is an alert with the
-- values before it, and metadata.by = 'repair', by which guard.undo finds it. A call whose link status only follows a
-- repaired appointment has such an alert too, since its values would be lost; metadata.follows names the rule that was
-- repaired, and it is no defect of its own.
--
-- Locks: FOR UPDATE on the rows, in the order of their ids; a row that another session holds is skipped, and found
-- again the next time; so is an appointment whose call another session holds. FOR UPDATE, and not less, because it
-- waits for nobody but meets the key lock of a session that is just adding an appointment to the call.

create or replace function guard.changes(p_before jsonb, p_after jsonb)
returns jsonb
language sql
immutable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_agg(
        jsonb_build_object('column', b.key, 'before', b.value, 'after', p_after -> b.key) order by b.key
    )
    from jsonb_each(p_before) as b
    where
        p_after -> b.key is distinct from b.value
        -- guard writes no phone number: one that changed was changed by a trigger of the application's
        and b.key <> all('{updated_at,guard_corrections,from_number,to_number}')
        -- what a trigger has marked is recorded already
        and not coalesce(p_after -> 'guard_corrections' @> jsonb_build_array(jsonb_build_object('column', b.key)), false)
$$;

comment on function guard.changes(jsonb, jsonb) is
'Which columns of a row changed: [{column, before, after}]; null if none did, or the triggers recorded them.';

-- p_before: the rows as they were. What is logged for another rule than the one that guard.repair repairs follows it.
create or replace function guard.log_repairs(p_rule text, p_entity_type text, p_before jsonb)
returns void
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    insert into guard.data_consistency_alerts (
        alert_type, severity, entity_type, entity_id, company_id, description, metadata, auto_corrected, corrected_at
    )
    select
        r.rule, r.severity, p_entity_type, changed.id, changed.company_id, r.description,
        jsonb_build_object('mode', 'correct', 'by', 'repair', 'changes', changed.changes)
        || jsonb_strip_nulls(jsonb_build_object('follows', nullif(current_setting('guard.repair'), r.rule))),
        true,
        now()
    from guard.rules as r
    cross join (
        select c.id, c.company_id, guard.changes(b.value, to_jsonb(c)) as changes
        from jsonb_array_elements(p_before) as b
        inner join public.calls as c on (b.value ->> 'id')::bigint = c.id
        where p_entity_type = 'call'
        union all
        select a.id, a.company_id, guard.changes(b.value, to_jsonb(a)) as changes
        from jsonb_array_elements(p_before) as b
        inner join public.appointments as a on (b.value ->> 'id')::bigint = a.id
        where p_entity_type = 'appointment'
    ) as changed
    where r.rule = p_rule and changed.changes is not null
$$;

comment on function guard.log_repairs(text, text, jsonb) is
'Record what a repair changed, comparing the rows as they were with the rows as they are.';

-- The BEFORE ROW triggers repair a row whenever it is written, and record it: so it is written as it is.
create or replace function guard.rewrite_calls(p_ids bigint[])
returns integer
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
    update public.calls as c set direction = c.direction where c.id = any(p_ids);
    select 0
$$;

comment on function guard.rewrite_calls(bigint[]) is
'Repairs calls whose own triggers know how: writes them as they are.';

-- The same for appointments, of those that can be linked: to write the others would only move their updated_at, where
-- the application keeps it. The calls that they are linked to follow, and what these said before is recorded as well.
create or replace function guard.rewrite_appointments(p_ids bigint[])
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids bigint[];
    v_calls jsonb;
begin
    select array_agg(k.id), jsonb_agg(distinct k.row_before) into v_ids, v_calls
    from (
        select a.id, (array_agg(to_jsonb(c)))[1] as row_before
        from public.appointments as a
        inner join public.calls as c on a.calcom_v2_booking_id = c.booking_id and a.company_id = c.company_id
        where a.id = any(p_ids) and a.call_id is null
        group by a.id
        having count(*) = 1
    ) as k;
    update public.appointments as a set source = a.source where a.id = any(v_ids);
    perform guard.log_repairs('inconsistent_link_status', 'call', v_calls);
    return 0;
end
$$;

comment on function guard.rewrite_appointments(bigint[]) is
'Repairs appointments whose own triggers know which call they belong to: writes them as they are.';

-- The phantom booking. The evidence is one appointment of the company that carries the call's booking id and belongs to
-- no call: that is linked. Without it the call's claim is taken back, and a person is asked.
-- An appointment that another session holds is not waited for: that session may be waiting for the call.
create or replace function guard.repair_missing_appointment(p_ids bigint[])
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_calls constant jsonb := (select jsonb_agg(to_jsonb(c)) from public.calls as c where c.id = any(p_ids));
    v_appointments jsonb;
    v_rest bigint[];
begin
    with evidence as (
        select a.id, c.id as call_id, to_jsonb(a) as row_before
        from public.calls as c
        inner join public.appointments as a on c.booking_id = a.calcom_v2_booking_id and c.company_id = a.company_id
        where
            c.id = any(p_ids)
            and a.call_id is null
            and not exists (
                select from public.appointments as other
                where other.calcom_v2_booking_id = a.calcom_v2_booking_id and other.id <> a.id
            )
            and not exists (
                select from public.calls as other
                where other.booking_id = c.booking_id and other.company_id = c.company_id and other.id <> c.id
            )
        order by a.id
        for update of a skip locked
    ),
    linked as (
        update public.appointments as a
        set call_id = e.call_id
        from evidence as e
        where a.id = e.id
        returning e.row_before
    )
    select jsonb_agg(l.row_before) into v_appointments
    from linked as l;
    perform guard.log_repairs('missing_appointment', 'appointment', v_appointments);

    v_rest := array(
        select c.id
        from public.calls as c
        where c.id = any(p_ids) and not exists (select from public.appointments as a where a.call_id = c.id)
    );
    -- where the triggers do not let calls follow, those that were linked still say what they said
    perform guard.calls_follow(array(select unnest(p_ids) except select unnest(v_rest)));
    perform guard.queue_violations('missing_appointment', v_rest, p_again => true);
    perform guard.take_back_claims(v_rest, 'missing_appointment');
    perform guard.log_repairs('missing_appointment', 'call', v_calls);
    return cardinality(v_rest);
end
$$;

comment on function guard.repair_missing_appointment(bigint[]) is
'Repairs phantom bookings: linked if the evidence is there, else taken back and queued for a person.';

create or replace function guard.repair_inconsistent_link_status(p_ids bigint[])
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_calls constant jsonb := (select jsonb_agg(to_jsonb(c)) from public.calls as c where c.id = any(p_ids));
begin
    perform guard.calls_follow(p_ids);
    perform guard.log_repairs('inconsistent_link_status', 'call', v_calls);
    return 0;
end
$$;

comment on function guard.repair_inconsistent_link_status(bigint[]) is
'Repairs link status and flags of calls: they follow the appointments.';

-- Asks a person about violations, once. After an answer not again, unless it is another defect: its values are others,
-- or its incident was resolved and has opened again since; when the row was written says nothing, since triggers of the
-- application's may move updated_at. p_again: another defect in any case, since the one asked about was repaired.
create or replace function guard.queue_violations(
    p_rule text, p_ids bigint[], p_error text = null, p_again boolean = false
)
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_queued integer;
begin
    with asked as (
        select
            c.id as call_id,
            c.retell_call_id,
            case r.entity_type when 'appointment' then 'appointment ' || v.entity_id else '' end as subject,
            concat_ws(':', r.rule, r.entity_type, v.entity_id) as fingerprint,
            jsonb_strip_nulls(jsonb_build_object(
                'entity_type', r.entity_type, 'entity_id', v.entity_id, 'company_id', v.company_id,
                'details', v.details, 'error', p_error
            )) as context
        from guard.rules as r
        cross join lateral guard.find_violations(p_rule, p_ids => p_ids) as v
        left join public.appointments as a on r.entity_type = 'appointment' and v.entity_id = a.id
        left join public.calls as c on case r.entity_type when 'call' then v.entity_id else a.call_id end = c.id
        where r.rule = p_rule
    )
    insert into guard.manual_review_queue (call_id, retell_call_id, subject, reason, context, priority)
    select a.call_id, a.retell_call_id, a.subject, p_rule, a.context, guard.review_priority(p_rule)
    from asked as a
    where
        not exists (
            select from guard.manual_review_queue as q
            where
                q.call_id is not distinct from a.call_id
                and q.reason = p_rule
                and q.subject = a.subject
                and (
                    q.status <> 'resolved'
                    or not (
                        p_again
                        or q.context -> 'details' is distinct from a.context -> 'details'
                        or exists (
                            select from guard.incidents as i
                            where
                                i.fingerprint = a.fingerprint
                                and i.first_seen_at > i.created_at
                                and i.first_seen_at > q.resolved_at
                        )
                    )
                )
        )
    on conflict do nothing;
    get diagnostics v_queued = row_count;
    return v_queued;
end
$$;

comment on function guard.queue_violations(text, bigint[], text, boolean) is
'Ask a person about rows that break a rule, once; returns how many items are new.';

create or replace function guard.lock_for_repair(p_entity_type text, p_ids bigint[])
returns bigint[]
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids bigint[];
    v_calls bigint[];
begin
    if p_entity_type = 'call' then
        return array(select c.id from public.calls as c where c.id = any(p_ids) order by c.id for update skip locked);
    end if;
    v_ids := array(
        select a.id from public.appointments as a where a.id = any(p_ids) order by a.id for update skip locked
    );
    -- with the calls that would follow them
    v_calls := array(
        select c.id
        from public.calls as c
        where
            c.booking_id = any(array(
                select a.calcom_v2_booking_id from public.appointments as a where a.id = any(v_ids)
            ))
        order by c.id
        for update skip locked
    );
    return array(
        select a.id
        from public.appointments as a
        where
            a.id = any(v_ids)
            and not exists (
                select from public.calls as c where c.booking_id = a.calcom_v2_booking_id and c.id <> all(v_calls)
            )
    );
end
$$;

comment on function guard.lock_for_repair(text, bigint[]) is
'Lock calls or appointments for a repair; returns those that no other session holds.';

-- A row that cannot be written, because a constraint of the application's stands against it say, must not keep the
-- others from being repaired: a batch that fails is repaired in halves, and the one row is left to a person.
-- called_false: rows of which a person has said that nothing is wrong, and which were not written since: left alone.
create or replace function guard.repair(
    p_rule text, p_ids bigint[], out repaired integer, out queued integer, out called_false integer
)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_rule guard.rules;
    v_ids bigint[];
    v_left bigint[];
    v_half record;
    v_error text;
begin
    repaired := 0;
    queued := 0;
    called_false := 0;
    -- an old snapshot does not show the appointment of a booking that only locked its call: left for the next time
    if p_rule = 'missing_appointment'
        and current_setting('transaction_isolation') <> 'read committed'
        and guard.follow_pct() < 100
    then
        return;
    end if;
    select r.* into v_rule from guard.rules as r where r.rule = p_rule;
    v_ids := array(select i.id from unnest(p_ids) as i (id) where guard.mode_for(p_rule, i.id) in ('correct', 'enforce'));
    v_ids := guard.lock_for_repair(v_rule.entity_type, v_ids);
    -- a statement of its own: it sees what those committed who held the rows before
    begin
        select
            coalesce(array_agg(v.entity_id order by v.entity_id) filter (where not v.is_false), '{}'),
            count(*) filter (where v.is_false)
        into v_ids, called_false
        from (
            select f.entity_id, bool_or(i.id is not null) as is_false
            from guard.find_violations(p_rule, p_ids => v_ids) as f
            left join guard.incidents as i
                on
                    i.fingerprint = concat_ws(':', p_rule, v_rule.entity_type, f.entity_id)
                    and i.is_false
                    and i.occurred_at is not distinct from f.occurred_at
            where f.entity_id is not null
            group by f.entity_id
        ) as v;
    exception
        when serialization_failure or deadlock_detected or lock_not_available then
            raise;
        when others then
            return; -- guard.detect says so: rule_failed
    end;
    if v_ids = '{}' then
        return;
    end if;
    if v_rule.repair_with is not null then
        begin
            perform set_config('guard.repair', p_rule, true);
            execute format('select %s($1)', to_regproc(v_rule.repair_with)) into queued using v_ids;
            set constraints all immediate; -- what COMMIT would say, and then of all rows
            perform set_config('guard.repair', '', true);
        exception
            when serialization_failure or deadlock_detected or lock_not_available or query_canceled then
                raise;
            when others then
                v_error := format('%s: %s', sqlstate, guard.mask_phones(sqlerrm));
        end;
    end if;
    if v_error is not null and cardinality(v_ids) > 1 then
        for v_half in
            select h.repaired, h.queued
            from (values (1, cardinality(v_ids) / 2), (cardinality(v_ids) / 2 + 1, cardinality(v_ids))) as b (low, high)
            cross join lateral guard.repair(p_rule, v_ids[b.low:b.high]) as h
        loop
            repaired := repaired + v_half.repaired;
            queued := queued + v_half.queued;
        end loop;
        return;
    end if;
    v_left := array(select distinct v.entity_id from guard.find_violations(p_rule, p_ids => v_ids) as v);
    repaired := cardinality(v_ids) - cardinality(v_left);
    if v_rule.severity <> 'info' then
        queued := coalesce(queued, 0) + guard.queue_violations(p_rule, v_left, v_error);
    end if;
    perform guard.resolve_incidents(array(
        select concat_ws(':', p_rule, v_rule.entity_type, i.id)
        from (select unnest(v_ids) except select unnest(v_left)) as i (id)
    ));
    update guard.baseline as b
    set cleared_at = now()
    where b.rule = p_rule and b.entity_id = any(v_ids) and b.entity_id <> all(v_left) and b.cleared_at is null;
end
$$;

comment on function guard.repair(text, bigint[]) is
'Repair the rows that break a rule standing at correct or enforce, and queue for a person what cannot be repaired.';

-- provides: function guard.follow_pct()
-- provides: function guard.calls_follow(bigint[])
-- provides: function guard.record_link_status(bigint[])
-- provides: function guard.find_overlaps(bigint[])
-- provides: function guard.judge_appointments(bigint[], bigint[], bigint[], bigint[])
--
-- What the triggers on appointments share. Called by them alone, as guard_owner.

-- Flags follow the appointments where inconsistent_link_status stands at correct (its rollout) or at enforce (all:
-- outside the rollout of enforce a rule corrects). Where the registry cannot be read nothing follows, and the fault
-- is counted.
create or replace function guard.follow_pct()
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_pct integer;
begin
    select case r.mode when 'enforce' then 100 when 'correct' then r.rollout_pct else 0 end into v_pct
    from guard.rules as r
    where r.rule = 'inconsistent_link_status';
    return coalesce(v_pct, 0);
exception
    when serialization_failure or deadlock_detected then
        raise;
    when others then
        perform guard.note_fault('follow_pct', sqlstate, sqlerrm);
        return 0;
end
$$;

comment on function guard.follow_pct() is 'The percentage of calls whose flags follow their appointments.';

-- Calls that lost an appointment, and possibly gained another. Locks them in the order of their ids, then judges in a
-- new statement, and writes every one: see sql/triggers/appointments.sql. The subquery stands behind OFFSET 0, or each
-- of the columns that are derived from it would ask for the appointments again.
create or replace function guard.calls_follow(p_calls bigint[])
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_follow_pct integer;
    v_writer constant text := coalesce(current_setting('guard.writer', true), '');
begin
    if p_calls = '{}' then
        return;
    end if;
    v_follow_pct := guard.follow_pct();
    if v_follow_pct > 0 then
        perform from public.calls as c
        where c.id = any(p_calls) and (v_follow_pct = 100 or guard.in_rollout(c.id, v_follow_pct))
        order by c.id
        for no key update;

        perform
            set_config('timezone', s.value, true),
            set_config('guard.writer', pg_trigger_depth()::text, true)
        from guard.settings as s
        where s.name = 'app_timezone';
        -- an outcome that is overwritten is marked; booked to removed needs no mark, it says itself what was there
        update public.calls as c
        set
            appointment_made = truth.booked,
            session_outcome = case
                when truth.booked then 'appointment_booked'
                when c.session_outcome = 'appointment_booked' then 'appointment_removed'
                else c.session_outcome
            end,
            appointment_link_status = case when truth.booked then 'linked' else 'unlinked' end,
            appointment_linked_at = case
                when truth.booked and c.appointment_link_status = 'linked'
                    then coalesce(c.appointment_linked_at, now())
                when truth.booked then now()
            end,
            guard_corrections = case
                when truth.booked and c.session_outcome <> 'appointment_booked' then guard.mark(
                    null, 'inconsistent_link_status', 'correct',
                    'session_outcome', to_jsonb(c.session_outcome), to_jsonb(text 'appointment_booked')
                )
            end,
            updated_at = now()
        from (
            select
                k.call_id,
                (select true from public.appointments as a where a.call_id = k.call_id limit 1) is true as booked
            from unnest(p_calls) as k (call_id)
            offset 0
        ) as truth
        where c.id = truth.call_id and (v_follow_pct = 100 or guard.in_rollout(c.id, v_follow_pct));
        perform set_config('guard.writer', v_writer, true);
    end if;
    if v_follow_pct < 100 then
        perform guard.record_link_status(p_calls);
    end if;
end
$$;

comment on function guard.calls_follow(bigint[]) is
'Bring the flags of calls in line with the appointments that they have after losing or moving some.';

-- Calls outside the rollout, or all of them at observe: those that no longer say what their appointments say.
-- Where phantom bookings are taken back, the key lock that a foreign key would take tells of a booking under way; there
-- need not be a foreign key. Locks: FOR KEY SHARE on the calls, then.
create or replace function guard.record_link_status(p_calls bigint[])
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_calls bigint[];
begin
    if exists (
        select from guard.rules as r
        where r.rule = 'missing_appointment' and r.mode::text = any('{correct,enforce}')
    ) then
        perform from public.calls as c where c.id = any(p_calls) order by c.id for key share;
    end if;
    v_calls := array(
        select c.id
        from public.calls as c
        where
            c.id = any(p_calls)
            and guard.mode_for('inconsistent_link_status', c.id) = 'observe'
            and exists (select from public.appointments as a where a.call_id = c.id)
            is distinct from (coalesce(c.appointment_link_status = 'linked', false) and c.appointment_made is true)
    );
    if v_calls <> '{}' then
        perform guard.record_violations('inconsistent_link_status', v_calls, v_calls);
    end if;
exception
    when serialization_failure or deadlock_detected then
        raise;
    when others then
        perform guard.note_fault('record_link_status', sqlstate, sqlerrm);
end
$$;

comment on function guard.record_link_status(bigint[]) is
'Record which of these calls do not follow their appointments.';

-- Which of these appointments overlap another one. Not one look at the index for each: that of a range costs ten times
-- that of a number. Each staff member's new periods, widened by an hour so that neighbours meet, are united; the
-- appointments of each such span are read once, in the order of their start, and one overlaps another if one before it
-- ends later than it starts, or the next one starts before it ends.
create or replace function guard.find_overlaps(p_ids bigint[])
returns bigint[]
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    v_overlapping constant bigint[] := array(
        select o.id
        from (
            select
                e.id,
                max(e.ends_at) over earlier > e.starts_at or lead(e.starts_at) over earlier < e.ends_at as overlaps
            from (
                select
                    a.staff_id,
                    unnest(range_agg(guard.period(
                        a.starts_at - interval '1 hour', a.ends_at + interval '1 hour'
                    ))) as span
                from unnest(p_ids) as p (id)
                inner join public.appointments as a on p.id = a.id
                where guard.period(a.starts_at, a.ends_at) is not null
                group by a.staff_id
            ) as s
            cross join lateral (
                select a.id, a.starts_at, a.ends_at
                from public.appointments as a
                where
                    a.staff_id = s.staff_id
                    and guard.period(a.starts_at, a.ends_at) && s.span
                    and a.status::text <> all('{cancelled,rejected,rescheduled,no_show}')
                offset 0 -- one look at the index for each span, and no other join
            ) as e
            window earlier as (
                partition by s.staff_id order by e.starts_at
                rows between unbounded preceding and 1 preceding
            )
        ) as o
        where o.overlaps
    );
begin
    if v_overlapping = '{}' then
        return v_overlapping;
    end if;
    return array(
        select v.id from unnest(v_overlapping) as v (id)
        intersect
        select p.id from unnest(p_ids) as p (id)
    );
end
$$;

comment on function guard.find_overlaps(bigint[]) is
'Those of these appointments that overlap another active one of their staff member.';

-- The rules that compare an appointment with other rows, over the appointments that a statement may have broken them
-- with: p_foreign (company or call not as it should be), p_marked, p_booked (booking id written that another one has),
-- p_planned (staff or time written); null for none. Each rule's view decides, and since it shows the later one of a
-- pair it is asked for that one, whichever was written. Refuses at enforce, else records.
create or replace function guard.judge_appointments(
    p_foreign bigint[], p_marked bigint[], p_booked bigint[], p_planned bigint[]
)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_found record;
    v_marked jsonb;
    v_overlapping bigint[];
begin
    if p_marked is not null then
        select jsonb_agg(jsonb_build_object('id', a.id, 'company_id', a.company_id, 'marks', a.guard_corrections))
        into v_marked
        from public.appointments as a
        where a.id = any(p_marked) and a.guard_corrections @? '$[*] ? (@.mode != "pass")';
    end if;
    if v_marked is not null then
        perform guard.record_corrections('appointment', v_marked);
    end if;
    if p_planned is not null then
        v_overlapping := guard.find_overlaps(p_planned);
    end if;
    if coalesce(p_foreign, p_booked, nullif(v_overlapping, '{}')) is null then
        return;
    end if;
    for v_found in
        select v.rule, array_agg(v.entity_id) as ids, array_agg(coalesce(a.call_id, a.id)) as keys
        from (
            select t.rule, t.entity_id from guard.tenant_mismatch as t where t.entity_id = any(p_foreign)
            union all
            select o.rule, o.entity_id from guard.orphaned_appointment as o where o.entity_id = any(p_foreign)
            union all
            select d.rule, d.entity_id
            from guard.duplicate_booking as d
            where d.entity_id = any(array(
                select e.id
                from public.appointments as n
                inner join public.appointments as e on n.calcom_v2_booking_id = e.calcom_v2_booking_id and n.id <= e.id
                where n.id = any(p_booked)
            ))
            union all
            select l.rule, l.entity_id
            from guard.overlapping_appointment as l
            where l.entity_id = any(array(
                select e.id
                from public.appointments as n
                inner join public.appointments as e
                    on n.staff_id = e.staff_id
                    and guard.period(n.starts_at, n.ends_at) && guard.period(e.starts_at, e.ends_at)
                    and e.status::text <> all('{cancelled,rejected,rescheduled,no_show}')
                    and n.id <= e.id
                where n.id = any(v_overlapping)
            ))
        ) as v
        inner join public.appointments as a on v.entity_id = a.id
        group by v.rule
    loop
        perform guard.record_violations(v_found.rule, v_found.ids, v_found.keys);
    end loop;
exception
    when serialization_failure or deadlock_detected then
        raise;
    when others then
        -- a refusal, and a correction that could not be recorded, must fail the write; a fault of guard's must not
        if sqlstate like 'ZG1%' or v_marked @? '$[*].marks[*] ? (@.mode == "correct")' then
            raise;
        end if;
        perform guard.note_fault('judge_appointments', sqlstate, sqlerrm);
end
$$;

comment on function guard.judge_appointments(bigint[], bigint[], bigint[], bigint[]) is
'Refuse or record the appointments of a statement that break a rule about other rows.';

-- provides: function guard.take_baseline(text)
-- provides: function guard.refresh_baseline()
--
-- What was wrong when guard came is known: it is marked once, is no news thereafter, and is counted down as it is
-- cleared. What breaks a rule after it was cleared is a new defect. Raises ZG010 (no such rule).

-- Marks all that breaks a rule now, or all rules but facts, and resolves its incidents. Looks at everything: cost as an
-- audit's. Where a rule's view fails, marked is null and error says why; it keeps no other rule from being marked.
-- Locks: the marked rows of guard.baseline.
create or replace function guard.take_baseline(p_rule text = null)
returns table (rule text, marked bigint, error text)
language plpgsql
volatile
security definer -- operators mark without having the rights on the application's tables
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_rule is not null and not exists (select from guard.rules as r where r.rule = p_rule) then
        raise exception using
            errcode = 'ZG010',
            message = format('there is no rule %L', left(p_rule, 60)),
            hint = 'select rule from guard.rules lists them';
    end if;
    perform pg_advisory_xact_lock(hashtext('guard.open_incidents'));
    for rule in
        select r.rule
        from guard.rules as r
        where r.severity <> 'info' and r.rule = coalesce(p_rule, r.rule)
        order by r.rule
    loop
        error := null;
        begin
            insert into guard.baseline as b (rule, entity_type, entity_id, company_id)
            select distinct on (v.entity_id) r.rule, r.entity_type, v.entity_id, v.company_id
            from guard.rules as r
            cross join lateral guard.find_violations(r.rule) as v
            where r.rule = take_baseline.rule and v.entity_id is not null
            order by v.entity_id
            on conflict on constraint baseline_pkey do update set marked_at = now(), cleared_at = null
            where b.cleared_at is not null;
            get diagnostics marked = row_count;
            update guard.incidents as i
            set
                status = 'resolved', snoozed_until = null, resolved_at = now(), resolved_by = 'baseline',
                updated_at = now()
            where
                i.rule = take_baseline.rule
                and i.status <> 'resolved'
                and exists (
                    select from guard.baseline as b
                    where b.rule = i.rule and b.entity_id = i.entity_id and b.cleared_at is null
                );
            insert into guard.audit_log (action, object, after)
            values ('take_baseline', take_baseline.rule, jsonb_build_object('marked', marked));
        exception
            when serialization_failure or deadlock_detected or lock_not_available then
                raise;
            when others then
                marked := null;
                error := format('%s: %s', sqlstate, guard.mask_phones(sqlerrm));
        end;
        return next;
    end loop;
end
$$;

comment on function guard.take_baseline(text) is
'Mark what breaks the rules now as known; returns how many rows of each were marked.';

-- Looks up every marked row, by its id, and notes which are sound now. The nightly look at everything does it, too.
create or replace function guard.refresh_baseline()
returns table (rule text, marked bigint, standing bigint, marked_at timestamp with time zone)
language plpgsql
volatile
security definer -- operators look without having the rights on the application's tables
set search_path = pg_catalog, pg_temp
as $$
declare
    v_rule text;
begin
    if not pg_is_in_recovery() then
        perform pg_advisory_xact_lock(hashtext('guard.open_incidents'));
        for v_rule in select distinct b.rule from guard.baseline as b where b.cleared_at is null loop
            begin
                update guard.baseline as b
                set cleared_at = now()
                from (
                    select k.entity_id from guard.baseline as k where k.rule = v_rule and k.cleared_at is null
                    except
                    select v.entity_id
                    from guard.find_violations(v_rule, p_ids => array(
                        select k.entity_id from guard.baseline as k where k.rule = v_rule and k.cleared_at is null
                    )) as v
                ) as gone
                where b.rule = v_rule and b.entity_id = gone.entity_id;
            exception
                when serialization_failure or deadlock_detected or lock_not_available then
                    raise;
                when others then
                    null; -- the view fails, or is no more: nothing is known to be cleared
            end;
        end loop;
    end if;
    return query
    select b.rule, count(*), count(*) filter (where b.cleared_at is null), max(b.marked_at)
    from guard.baseline as b
    group by b.rule
    order by b.rule;
end
$$;

comment on function guard.refresh_baseline() is
'How many defects of the baseline there were, and how many still stand, rule by rule.';

grant execute on function guard.take_baseline(text) to guard_operator;
grant execute on function guard.refresh_baseline() to guard_operator;

-- provides: function guard.reconcile(boolean, text, integer, bigint)
--
-- Goes through everything that breaks a rule, a batch of each rule a call, and repairs what may be repaired: the
-- caller loops, pauses between the batches, and may stop at any time. Where it has come to is kept, so that the next
-- call goes on there, whoever makes it. Only rules at correct or enforce are repaired.
-- One session at a time: another gets no rows. Locks: see sql/functions/repair.sql; they end with the caller's
-- transaction, so a batch is to be committed before the next. Raises ZG010 (no such rule), ZG405 (no such batch).

-- A dry run does the same in a subtransaction and takes it back: it says exactly what would happen. p_after: the id to
-- go on after, instead of what was kept. is_last: the batch was the last of its rule. error: the rule's view fails, and
-- nothing was done; the other rules are gone through all the same. called_false: see guard.repair.
create or replace function guard.reconcile(
    p_dry_run boolean = true, p_rule text = null, p_batch integer = 1000, p_after bigint = null
)
returns table (
    rule text, examined integer, repaired integer, queued integer, last_id bigint, is_last boolean, error text,
    called_false integer
)
language plpgsql
volatile
security definer -- operators repair without having the rights on the application's tables
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids bigint[];
begin
    if p_rule is not null and not exists (select from guard.rules as r where r.rule = p_rule) then
        raise exception using
            errcode = 'ZG010',
            message = format('there is no rule %L', left(p_rule, 60)),
            hint = 'select rule from guard.rules lists them';
    end if;
    if p_batch is null or p_batch not between 1 and 10000 then
        raise exception using
            errcode = 'ZG405',
            message = format('a batch of %s rows is not possible', coalesce(p_batch::text, 'null')),
            hint = 'Use 1 to 10000.';
    end if;
    if pg_is_in_recovery() or not pg_try_advisory_xact_lock(hashtext('guard.reconcile')) then
        return;
    end if;
    -- a detection holds the incidents that it refreshes: waited for now, and not with the rows of a batch locked
    perform pg_advisory_xact_lock(hashtext('guard.open_incidents'));
    -- phantom bookings last: other repairs tell which they are
    for rule in
        select r.rule
        from guard.rules as r
        where r.mode <> 'off' and r.severity <> 'info' and r.rule = coalesce(p_rule, r.rule)
        order by r.rule = 'missing_appointment', r.rule
    loop
        last_id := coalesce(p_after, (select p.last_id from guard.reconcile_progress as p where p.rule = reconcile.rule), 0);
        if p_dry_run and p_after is null then
            last_id := 0;
        end if;
        error := null;
        begin
            v_ids := array(
                select v.entity_id from guard.find_violations(rule, p_after => last_id, p_limit => p_batch) as v
            );
        exception
            when serialization_failure or deadlock_detected or lock_not_available then
                raise;
            when others then
                select 0, 0, 0, 0, true, format('%s: %s', sqlstate, guard.mask_phones(sqlerrm))
                into examined, repaired, queued, called_false, is_last, error;
                return next;
                continue;
        end;
        begin
            examined := cardinality(v_ids);
            is_last := examined < p_batch;
            last_id := coalesce(v_ids[examined], last_id);
            select f.repaired, f.queued, f.called_false
            into repaired, queued, called_false
            from guard.repair(rule, v_ids) as f;
            if p_dry_run then
                raise exception using errcode = 'ZG499';
            end if;
            insert into guard.reconcile_progress as p (rule, last_id)
            values (reconcile.rule, case when is_last then 0 else reconcile.last_id end)
            on conflict on constraint reconcile_progress_pkey do update
            set last_id = excluded.last_id, rounds = p.rounds + is_last::integer, updated_at = now();
        exception
            when sqlstate 'ZG499' then
                null; -- the dry run is taken back
        end;
        return next;
    end loop;
end
$$;

comment on function guard.reconcile(boolean, text, integer, bigint) is
'Repair the next batch of each rule''s violations, or of one rule''s; a dry run says what would be done.';

grant execute on function guard.reconcile(boolean, text, integer, bigint) to guard_operator;

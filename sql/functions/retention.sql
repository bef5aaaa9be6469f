-- provides: function guard.maintain_alerts(timestamp with time zone)
-- provides: function guard.drop_alert_month(text)
-- provides: function guard.prune_history(timestamp with time zone)
--
-- How long guard keeps what it knows. Each call does one batch and says whether there is more, so that no transaction
-- is big; the job goes on until there is none. Idempotent.

-- Makes the months ahead, drops a month in which nothing is kept any more, deletes alerts that are past their time.
-- An alert that an unresolved incident points to stays, and its month with it. Alerts that were auto-corrected hold the
-- values before, which guard undo needs; the others outlive them.
-- Locks: the deleted alerts, skipping those that others hold; to make and drop months see below: 200 ms, or tomorrow.
create or replace function guard.maintain_alerts(p_now timestamp with time zone = now())
returns jsonb
language plpgsql
volatile
security definer -- makes and drops partitions, and deletes alerts
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '200ms'
as $$
declare
    v_batch constant integer := 10000;
    v_corrected_until constant timestamp with time zone :=
        p_now - make_interval(days => guard.setting('alert_retention_days')::integer);
    v_uncorrected_until constant timestamp with time zone :=
        least(
            p_now - make_interval(days => guard.setting('uncorrected_alert_retention_days')::integer),
            v_corrected_until
        );
    v_month text;
    v_made integer := 0;
    v_dropped integer := 0;
    v_blocked integer := 0;
    v_deleted integer := 0;
begin
    begin
        select count(*) into v_made from guard.ensure_alert_partitions(p_now, 3);
    exception
        when lock_not_available then
            v_blocked := 1;
    end;
    for v_month in
        select c.relname
        from pg_catalog.pg_inherits as i
        inner join pg_catalog.pg_class as c on i.inhrelid = c.oid
        where
            i.inhparent = 'guard.data_consistency_alerts'::regclass
            and c.relname ~ '^data_consistency_alerts_\d{4}_\d\d$'
            and to_timestamp(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= v_uncorrected_until
        order by c.relname
    loop
        begin
            v_dropped := guard.drop_alert_month(v_month);
        exception
            when lock_not_available then
                v_blocked := v_blocked + 1;
        end;
        exit when v_dropped > 0;
    end loop;
    if v_dropped = 0 then
        with past as (
            select a.id, a.detected_at
            from guard.data_consistency_alerts as a
            where
                a.detected_at < v_corrected_until
                and (a.auto_corrected or a.detected_at < v_uncorrected_until)
                and not exists (
                    select from guard.incidents as i
                    where
                        i.status <> 'resolved'
                        and i.rule = a.alert_type
                        and i.entity_type = a.entity_type
                        and (i.entity_id = a.entity_id or i.entity_id is null)
                )
            limit v_batch
            for update skip locked
        )
        delete from guard.data_consistency_alerts as a
        using past as p
        where a.id = p.id and a.detected_at = p.detected_at;
        get diagnostics v_deleted = row_count;
    end if;
    return jsonb_build_object(
        'made', v_made, 'dropped', v_dropped, 'deleted', v_deleted, 'blocked', v_blocked,
        'more', v_dropped > 0 or v_deleted = v_batch
    );
end
$$;

comment on function guard.maintain_alerts(timestamp with time zone) is
'Make the alerts'' months ahead, drop old ones, delete alerts past their time: one batch; says if there is more.';

-- Detaches and drops a month, rows and all, unless an unresolved incident points to one of them. Gives 1 if it did.
-- Locks: ACCESS EXCLUSIVE on the alerts, the month and the default partition, until the caller commits. Concurrent
-- detaching, which would lock less, cannot be done inside a function, nor where there is a default partition.
create or replace function guard.drop_alert_month(p_partition text)
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_needed boolean;
begin
    execute format(
        'select exists ('
        '    select from guard.%I as a inner join guard.incidents as i'
        '    on i.rule = a.alert_type and i.entity_type = a.entity_type'
        '        and (i.entity_id = a.entity_id or i.entity_id is null)'
        '    where i.status <> ''resolved'''
        ')', p_partition
    ) into v_is_needed;
    if v_is_needed then
        return 0;
    end if;
    execute format('alter table guard.data_consistency_alerts detach partition guard.%I', p_partition);
    execute format('drop table guard.%I', p_partition);
    return 1;
end
$$;

comment on function guard.drop_alert_month(text) is
'Drop a month of alerts, unless an unresolved incident points to one.';

-- One batch of each table. A message goes with its deliveries and its rows of the outbox, unless it could not be
-- delivered: that stays until somebody has seen to it. What nobody sent goes when incidents do. What a person
-- did (audit_log, manual_review_queue, an incident called false, which would else be opened again) and what bookings rest
-- on (booking_intents, remote_bookings) stays for good.
-- Locks: the deleted rows.
create or replace function guard.prune_history(p_now timestamp with time zone = now())
returns jsonb
language plpgsql
volatile
security definer -- deletes rows of tables that nobody else may write
set search_path = pg_catalog, pg_temp
as $$
declare
    v_batch constant integer := 10000;
    v_history_until constant timestamp with time zone :=
        p_now - make_interval(days => guard.setting('history_retention_days')::integer);
    v_incidents_until constant timestamp with time zone :=
        p_now - make_interval(days => guard.setting('incident_retention_days')::integer);
    v_runs_until constant timestamp with time zone :=
        p_now - make_interval(days => guard.setting('job_run_retention_days')::integer);
    v_deleted jsonb;
begin
    -- by ctid: whatever the statistics say, a batch costs what it deletes
    with breaker_events as (
        delete from guard.circuit_breaker_events
        where ctid = any(array(
            select e.ctid from guard.circuit_breaker_events as e where e.created_at < v_history_until limit v_batch
        ))
        returning 'breaker_events' as what
    ),
    breaker_metrics as (
        delete from guard.circuit_breaker_metrics
        where ctid = any(array(
            select m.ctid from guard.circuit_breaker_metrics as m where m.minute < v_history_until limit v_batch
        ))
        returning 'breaker_metrics' as what
    ),
    validations as (
        delete from guard.validation_metrics
        where ctid = any(array(
            select v.ctid from guard.validation_metrics as v where v.created_at < v_history_until limit v_batch
        ))
        returning 'validations' as what
    ),
    webhooks as (
        delete from guard.webhook_events
        where ctid = any(array(select w.ctid from guard.webhook_events as w where w.received_at < v_history_until limit v_batch))
        returning 'webhooks' as what
    ),
    faults as (
        delete from guard.faults
        where ctid = any(array(select f.ctid from guard.faults as f where f.created_at < v_history_until limit v_batch))
        returning 'faults' as what
    ),
    messages as (
        delete from guard.messages
        where ctid = any(array(
            select m.ctid
            from guard.messages as m
            where
                m.created_at < v_history_until
                and not exists (
                    select from guard.deliveries as d
                    where d.message_id = m.id and d.status::text = any('{pending,dead}')
                )
            limit v_batch
        ))
        returning 'messages' as what
    ),
    notifications as (
        delete from guard.notifications
        where ctid = any(array(
            select n.ctid from guard.notifications as n
            where n.message_id is null and n.created_at < v_incidents_until limit v_batch
        ))
        returning 'notifications' as what
    ),
    incidents as (
        delete from guard.incidents
        where ctid = any(array(
            select i.ctid from guard.incidents as i
            where i.resolved_at < v_incidents_until and not i.is_false limit v_batch
        ))
        returning 'incidents' as what
    ),
    job_runs as (
        delete from guard.job_runs
        where ctid = any(array(
            select r.ctid from guard.job_runs as r
            where r.started_at < v_runs_until and r.status <> 'running' limit v_batch
        ))
        returning 'job_runs' as what
    ),
    counts as (
        select d.what, count(*) as deleted
        from (
            select b.what from breaker_events as b
            union all
            select m.what from breaker_metrics as m
            union all
            select v.what from validations as v
            union all
            select w.what from webhooks as w
            union all
            select f.what from faults as f
            union all
            select s.what from messages as s
            union all
            select n.what from notifications as n
            union all
            select i.what from incidents as i
            union all
            select r.what from job_runs as r
        ) as d
        group by d.what
    )
    select
        coalesce(jsonb_object_agg(c.what, c.deleted), '{}')
        || jsonb_build_object('more', coalesce(bool_or(c.deleted = v_batch), false))
    into v_deleted
    from counts as c;
    return v_deleted;
end
$$;

comment on function guard.prune_history(timestamp with time zone) is
'Delete events, metrics, messages, resolved incidents and runs past their time: one batch; says if there is more.';

grant execute on function guard.maintain_alerts(timestamp with time zone) to guard_operator;
grant execute on function guard.prune_history(timestamp with time zone) to guard_operator;

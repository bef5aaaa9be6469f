-- What every object of guard's must look like, read from the catalog.
begin;
select plan(15);

create extension if not exists plpgsql_check;

create temporary table guard_functions as
select p.*, p.oid::regprocedure::text as identity, l.lanname
from pg_catalog.pg_proc as p
inner join pg_catalog.pg_language as l on p.prolang = l.oid
where
    p.pronamespace = 'guard'::regnamespace
    and not exists (select from pg_catalog.pg_depend as d where d.objid = p.oid and d.deptype = 'e');

select is_empty(
    $$select identity from guard_functions
    where prosqlbody is null and not coalesce(proconfig, '{}') @> '{"search_path=pg_catalog, pg_temp"}'
    and prosrc !~ '\mcommit;'$$, -- which does not go with it
    'every function pins its search_path, with what a session can make last, or was bound as it was made'
);
select is_empty(
    $$select identity from guard_functions where proowner <> 'guard_owner'::regrole$$,
    'every function belongs to guard_owner'
);
select is_empty(
    $$select f.identity from guard_functions as f
    where has_function_privilege('public', f.oid, 'execute') and f.proname <> 'period'$$,
    'no function is open to the public, but for the one that an index calls'
);
select is_empty(
    $$select f.identity from guard_functions as f
    where f.prorettype <> 'trigger'::regtype and obj_description(f.oid, 'pg_proc') is null$$,
    'every function has a comment'
);
select is_empty(
    $$select f.identity from guard_functions as f
    where f.prosecdef and f.prorettype <> 'trigger'::regtype and f.prosrc !~ 'guard\.'$$,
    'a definer function is there for guard''s own tables'
);
select is_empty(
    $$select f.identity from guard_functions as f
    where f.proname not in (
        -- interfaces: called by applications, operators and the command
        'set_rule', 'set_setting', 'probe_rule', 'constraint_statements', 'register_rule', 'ensure_alert_partitions',
        'period', 'instant', 'setting', 'index_in_force', 'constraint_state', 'breaker_key', 'breaker_acquire',
        'breaker_record', 'breaker_override', 'breaker_status', 'breaker_merge', 'breaker_report', 'take_review',
        'release_review', 'process_review_queue', 'begin_booking', 'mark_remote_booked', 'validate_booking',
        'validate_appointment', 'recover_intents', 'handle_call_ended', 'handle_booking_event', 'detect', 'check_call',
        'judge_pending', 'set_incident', 'take_baseline', 'refresh_baseline', 'reconcile', 'undo', 'bundle_notifications',
        'claim_delivery', 'settle_delivery', 'requeue_deliveries', 'discard_delivery', 'register_job', 'set_job',
        'run_job', 'daily_report', 'call_history', 'mask_value', 'constraint_wanted', 'record_constraint'
    )
    and not exists (
        select from guard_functions as caller
        where caller.oid <> f.oid and caller.prosrc like '%guard.' || f.proname || '(%'
    )
    and not exists (select from guard.jobs as j where j.command like '%guard.' || f.proname || '(%')
    and not exists (select from guard.rules as r where r.repair_with = 'guard.' || f.proname)
    and not exists (select from pg_catalog.pg_trigger as t where t.tgfoid = f.oid)$$,
    'no function is unused'
);
select is_empty(
    $$select c.relname from pg_catalog.pg_class as c
    where c.relnamespace = 'guard'::regnamespace and c.relkind = 'v'
    and not coalesce(c.reloptions, '{}') @> '{security_invoker=true}'$$,
    'every view is security_invoker'
);
select is_empty(
    $$select c.relname from pg_catalog.pg_class as c
    where c.relnamespace = 'guard'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
    and c.relname !~ '^_?yoyo' and obj_description(c.oid, 'pg_class') is null$$,
    'every table and view has a comment'
);
select is_empty(
    $$select c.relname, a.attname from pg_catalog.pg_class as c
    inner join pg_catalog.pg_attribute as a on c.oid = a.attrelid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'guard'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
    and c.relname !~ '^_?yoyo' and col_description(c.oid, a.attnum) is null$$,
    'and so has every column'
);
select is_empty(
    $$select r.rule from guard.rules as r
    where (
        select array_agg(format('%s %s', a.attname, format_type(a.atttypid, null)) order by a.attnum)
        from pg_catalog.pg_attribute as a
        where a.attrelid = to_regclass('guard.' || r.rule) and a.attnum between 1 and 7
    ) is distinct from array[
        'rule text', 'severity text', 'entity_type text', 'entity_id bigint', 'company_id bigint',
        'occurred_at timestamp with time zone', 'details jsonb'
    ]$$,
    'every rule has a view with the uniform columns'
);
select is((select count(*) from guard.rules), 11::bigint, 'there are eleven rules');
select is_empty($$select r.rule from guard.rules as r where r.probe is null$$, 'every rule has a probe');
select is_empty(
    $$select f.identity, c.* from guard_functions as f
    cross join lateral plpgsql_check_function(f.oid) as c
    where
        f.lanname = 'plpgsql' and f.prorettype <> 'trigger'::regtype
        -- what a rule's view returns is known only when it is asked
        and not (f.proname = 'find_violations' and c ~ 'maybe unmodified|result of dynamic SQL')$$,
    'plpgsql_check finds nothing in the functions'
);
select is_empty(
    $$select f.identity, t.tgname, c.*
    from pg_catalog.pg_trigger as t
    inner join guard_functions as f on t.tgfoid = f.oid
    cross join lateral plpgsql_check_function(
        f.oid, t.tgrelid, oldtable => t.tgoldtable, newtable => t.tgnewtable
    ) as c
    where not t.tgisinternal$$,
    'nor in the trigger functions'
);
select is_empty(
    $$select c.relname from pg_catalog.pg_class as c
    where c.relnamespace = 'guard'::regnamespace and c.relkind in ('r', 'p')
    and c.relname !~ '^_?yoyo' and c.relowner <> 'guard_owner'::regrole$$,
    'every table belongs to guard_owner'
);

select * from finish();
rollback;

-- A rule names the function that repairs it.
-- The tables are guard's own and small, and only guard's files call the function:
-- squawk-ignore-file ban-drop-function, require-concurrent-index-creation
set local role guard_owner;

alter table guard.rules add column if not exists repair_with text;

comment on column guard.rules.repair_with is
'The function that repairs it: takes an array of ids, returns how many it left to a person; null if there is none.';

-- It got an argument more, and two of one name would be ambiguous.
drop function if exists guard.register_rule(
    text, text, text, text, text, text, text, boolean, boolean, interval, interval, text, text, text
);

-- Whether a person was asked already.
create index if not exists manual_review_queue_call_idx on guard.manual_review_queue (call_id, reason);
create index if not exists manual_review_queue_subject_idx on guard.manual_review_queue (subject, reason)
where subject <> '';

drop index guard.manual_review_queue_subject_idx;
drop index guard.manual_review_queue_call_idx;
drop function if exists guard.register_rule(
    text, text, text, text, text, text, text, boolean, boolean, interval, interval, text, text, text, text
);
alter table guard.rules drop column repair_with;

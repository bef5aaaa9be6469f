-- What the booking path keeps: intents written ahead of the remote call, what the calendar said of each booking,
-- validations, the queue of what a person must decide, and the outbox.
set local role guard_owner;

create table if not exists guard.manual_review_queue (
    id bigint generated always as identity primary key,
    call_id bigint,
    retell_call_id text,
    subject text not null default '',
    reason text not null check (length(reason) between 1 and 100),
    context jsonb not null default '{}',
    priority integer not null check (priority between 1 and 5),
    status text not null default 'pending' check (status in ('pending', 'in_progress', 'resolved')),
    assignee text,
    assigned_at timestamptz,
    attempts integer not null default 0,
    resolution text,
    resolved_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    check ((status = 'in_progress') = (assignee is not null and resolved_at is null)),
    check ((status = 'resolved') = (resolved_at is not null and resolution is not null))
);

-- One open item per call and reason; what no call is known of is told apart by its subject.
create unique index if not exists manual_review_queue_open_idx
on guard.manual_review_queue (coalesce(call_id, 0), reason, subject)
where status <> 'resolved';
create index if not exists manual_review_queue_next_idx on guard.manual_review_queue (status, priority, created_at);
create index if not exists manual_review_queue_age_idx on guard.manual_review_queue (status, created_at);

create table if not exists guard.booking_intents (
    id bigint generated always as identity primary key,
    key text not null unique check (length(key) between 1 and 200),
    call_id bigint not null,
    request jsonb not null,
    request_hash text not null,
    state text not null default 'started'
    check (state in ('started', 'remote_booked', 'recorded', 'validated', 'failed', 'compensated')),
    booking_id text,
    appointment_id bigint,
    failure_reason text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    check (state not in ('remote_booked', 'recorded', 'validated') or booking_id is not null),
    check (state not in ('recorded', 'validated') or appointment_id is not null)
);

create index if not exists booking_intents_unfinished_idx on guard.booking_intents (updated_at)
where state in ('started', 'remote_booked', 'recorded');
create index if not exists booking_intents_booking_idx on guard.booking_intents (booking_id)
where booking_id is not null;
create index if not exists booking_intents_call_idx on guard.booking_intents (call_id);

create table if not exists guard.remote_bookings (
    booking_id text primary key check (length(booking_id) between 1 and 200),
    state text not null check (state in ('active', 'superseded', 'cancelled')),
    replaced_by text,
    event_at timestamptz not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table if not exists guard.webhook_events (
    id bigint generated always as identity primary key,
    source text not null check (source in ('retell', 'calcom')),
    event text not null,
    digest text not null,
    payload jsonb not null,
    action text not null,
    received_at timestamptz not null default now(),
    unique (source, digest)
);

create table if not exists guard.validation_metrics (
    id bigint generated always as identity primary key,
    call_id bigint,
    appointment_id bigint,
    success boolean not null,
    reason text,
    duration_ms numeric not null,
    created_at timestamptz not null default now()
);

create index if not exists validation_metrics_created_at_idx on guard.validation_metrics (created_at);

create table if not exists guard.notifications (
    id bigint generated always as identity primary key,
    severity text not null check (severity in ('info', 'warning', 'critical')),
    kind text not null,
    entity_type text,
    entity_id bigint,
    company_id bigint,
    message text not null,
    status text not null default 'pending' check (status in ('pending', 'sent', 'dead')),
    attempts integer not null default 0,
    next_attempt_at timestamptz not null default now(),
    last_error text,
    created_at timestamptz not null default now(),
    sent_at timestamptz
);

create index if not exists notifications_pending_idx on guard.notifications (next_attempt_at) where status = 'pending';

comment on table guard.manual_review_queue is 'What a person must decide: one open item per call and reason.';
comment on column guard.manual_review_queue.id is 'Grows with each item.';
comment on column guard.manual_review_queue.call_id is 'The call; null where none is known.';
comment on column guard.manual_review_queue.retell_call_id is 'The phone agent''s id of the call.';
comment on column guard.manual_review_queue.subject is
'What the item is about where no call is known, a booking id say.';
comment on column guard.manual_review_queue.reason is 'Why a person is asked; decides the priority.';
comment on column guard.manual_review_queue.context is 'What is known: ids and values, no phone numbers.';
comment on column guard.manual_review_queue.priority is '1, the most urgent, to 5.';
comment on column guard.manual_review_queue.status is 'pending, in_progress or resolved.';
comment on column guard.manual_review_queue.assignee is 'Who took it, or resolved it.';
comment on column guard.manual_review_queue.assigned_at is 'When it was taken last.';
comment on column guard.manual_review_queue.attempts is 'How often it was retried automatically.';
comment on column guard.manual_review_queue.resolution is 'How it was resolved.';
comment on column guard.manual_review_queue.resolved_at is 'When it was resolved.';
comment on column guard.manual_review_queue.created_at is 'When it was queued.';
comment on column guard.manual_review_queue.updated_at is 'When it was changed, or queued again, last.';

comment on table guard.booking_intents is
'Write-ahead log of remote bookings: committed before the calendar is called, so that a crash can be cleared up.';
comment on column guard.booking_intents.id is 'Grows with each intent.';
comment on column guard.booking_intents.key is 'The caller''s idempotency key.';
comment on column guard.booking_intents.call_id is 'The call that books.';
comment on column guard.booking_intents.request is 'What is to be booked: the appointment''s columns.';
comment on column guard.booking_intents.request_hash is 'SHA-256 of call and request: one key stands for one request.';
comment on column guard.booking_intents.state is
'started, remote_booked, recorded, validated; or failed, or compensated: the remote booking was cancelled.';
comment on column guard.booking_intents.booking_id is 'The remote booking.';
comment on column guard.booking_intents.appointment_id is 'The appointment that records it.';
comment on column guard.booking_intents.failure_reason is 'Why it failed.';
comment on column guard.booking_intents.created_at is 'When it was begun.';
comment on column guard.booking_intents.updated_at is 'When it moved on last.';

comment on table guard.remote_bookings is
'What the calendar said last of each booking: events come twice and in any order.';
comment on column guard.remote_bookings.booking_id is 'The calendar''s uid.';
comment on column guard.remote_bookings.state is 'active, superseded by a reschedule, or cancelled.';
comment on column guard.remote_bookings.replaced_by is 'The uid that a reschedule gave it.';
comment on column guard.remote_bookings.event_at is 'The calendar''s time of the newest event.';
comment on column guard.remote_bookings.created_at is 'When it was heard of first.';
comment on column guard.remote_bookings.updated_at is 'When it was heard of last.';

comment on table guard.webhook_events is
'Every event that was handled, whole but for phone numbers; a repeated one is known by its digest.';
comment on column guard.webhook_events.id is 'Grows with each event.';
comment on column guard.webhook_events.source is 'retell or calcom.';
comment on column guard.webhook_events.event is 'The kind of event, in the sender''s words.';
comment on column guard.webhook_events.digest is 'SHA-256 of the payload.';
comment on column guard.webhook_events.payload is 'The event, without phone numbers.';
comment on column guard.webhook_events.action is 'What was done about it.';
comment on column guard.webhook_events.received_at is 'When it was handled.';

comment on table guard.validation_metrics is 'One row per validation.';
comment on column guard.validation_metrics.id is 'Grows with each validation.';
comment on column guard.validation_metrics.call_id is 'The call.';
comment on column guard.validation_metrics.appointment_id is 'The appointment; null if none was found.';
comment on column guard.validation_metrics.success is 'Whether all checks passed.';
comment on column guard.validation_metrics.reason is 'The first check that failed; null if none did.';
comment on column guard.validation_metrics.duration_ms is 'How long the validation took, in milliseconds.';
comment on column guard.validation_metrics.created_at is 'When it was done.';

comment on table guard.notifications is
'Outbox: messages that are delivered after the transaction that wrote them has committed.';
comment on column guard.notifications.id is 'Grows with each message.';
comment on column guard.notifications.severity is 'info, warning or critical.';
comment on column guard.notifications.kind is 'What it is about: a rule, or an event such as booking_rolled_back.';
comment on column guard.notifications.entity_type is 'call or appointment; null where it is about neither.';
comment on column guard.notifications.entity_id is 'The id of the call or appointment.';
comment on column guard.notifications.company_id is 'The company that it belongs to.';
comment on column guard.notifications.message is 'The text, without phone numbers.';
comment on column guard.notifications.status is 'pending, sent, or dead: given up.';
comment on column guard.notifications.attempts is 'How often delivery was tried.';
comment on column guard.notifications.next_attempt_at is 'When delivery is due.';
comment on column guard.notifications.last_error is 'Why the last attempt failed.';
comment on column guard.notifications.created_at is 'When it was written.';
comment on column guard.notifications.sent_at is 'When it was delivered.';

grant select on guard.manual_review_queue to guard_app, guard_operator, guard_reader, guard_monitor;
grant select on guard.booking_intents, guard.remote_bookings to guard_app, guard_operator, guard_monitor;
grant select on guard.validation_metrics to guard_operator, guard_reader, guard_monitor;
grant select on guard.notifications to guard_operator, guard_monitor;
grant select on guard.webhook_events to guard_operator;

drop index guard.notifications_waiting_idx;
drop index guard.notifications_entity_idx;
alter table guard.notifications add column status text not null default 'pending'
check (status in ('pending', 'sent', 'dead'));
alter table guard.notifications add column attempts integer not null default 0;
alter table guard.notifications add column next_attempt_at timestamptz not null default now();
alter table guard.notifications add column last_error text;
alter table guard.notifications add column sent_at timestamptz;
update guard.notifications as n
set status = 'sent', sent_at = m.created_at
from guard.messages as m
where n.message_id = m.id;
alter table guard.notifications drop column message_id;
drop table guard.deliveries;
drop table guard.messages;
create index notifications_pending_idx on guard.notifications (next_attempt_at) where status = 'pending';
comment on column guard.notifications.status is 'pending, sent, or dead: given up.';
comment on column guard.notifications.attempts is 'How often delivery was tried.';
comment on column guard.notifications.next_attempt_at is 'When delivery is due.';
comment on column guard.notifications.last_error is 'Why the last attempt failed.';
comment on column guard.notifications.sent_at is 'When it was delivered.';

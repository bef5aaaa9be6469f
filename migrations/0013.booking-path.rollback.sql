drop table if exists guard.notifications;
drop table if exists guard.validation_metrics;
drop table if exists guard.webhook_events;
drop table if exists guard.remote_bookings;
drop table if exists guard.booking_intents;
drop table if exists guard.manual_review_queue;

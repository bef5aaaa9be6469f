drop function guard.period(timestamp, timestamp);
drop function guard.period(timestamptz, timestamptz);

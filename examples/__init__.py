"""The demo, the legacy database it starts from, and the calendar that it books in."""

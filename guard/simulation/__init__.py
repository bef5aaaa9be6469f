"""A stream of calls and bookings with faults in it, played in scratch databases: what would guard change?"""

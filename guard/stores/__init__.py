"""Where the state of a circuit lives: Redis, PostgreSQL, the memory of a process, or one after the other."""

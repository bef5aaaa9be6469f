"""What tests/ and pgtests/ share: the databases they run on, and the collector of pgTAP files."""

pytest_plugins = ["pytester", "tests.databases", "tests.pgtap", "tests.redis_servers"]

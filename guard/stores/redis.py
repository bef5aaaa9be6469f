"""Circuits on Redis or Redis Cluster: shared and fast, one script call for each operation.

Needs Redis 5 or later. A circuit is one hash, `guard:breaker:{KEY}`; its tag keeps it on one node of a cluster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Event as Flag
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.connection import parse_url
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from guard.errors import GuardError
from guard.stores.base import Event, Outcome, Policy, Reply, Snapshot, StoreUnavailableError

_SCRIPT = Path(__file__).with_name("breaker.lua").read_text(encoding="utf-8")
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_log = logging.getLogger(__name__)


class RedisStore:
    """Circuits on the Redis at `url`; with `cluster` that is one node of a Redis Cluster.

    `timeout` bounds each wait for the server, in seconds: redis-py's own defaults would let one call against a frozen
    server take a minute. Nothing is tried twice. Raises GuardError for an address that cannot be read.
    """

    name = "redis"
    shared = True

    def __init__(
        self, url: str, *, cluster: bool = False, timeout: float = 0.05, prefix: str = "guard:breaker"
    ) -> None:
        try:
            parse_url(url)  # type: ignore[no-untyped-call]  # redis-py types its classes only
        except ValueError:
            # its message may quote the password
            raise GuardError(
                "The address of Redis cannot be read.",
                fix="Write it as redis://user:password@host:6379/0, rediss://... or unix://...; in a password write "
                "@, : and / as %40, %3A and %2F.",
            ) from None
        self._url = url
        self._cluster = cluster
        self._prefix = prefix
        self._channel = f"{prefix}:changes"
        self._options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "decode_responses": True,
            "protocol": 2,
        }
        self._client_of_process: Any = None

    def acquire(self, key: str, lease: float) -> Reply:
        return self._call(key, "acquire", str(uuid.uuid4()), round(lease * 1000))

    def record(self, key: str, token: str, outcome: Outcome, policy: Policy, error: str | None = None) -> Reply:
        return self._call(
            key,
            "record",
            token,
            outcome,
            policy.failure_threshold,
            policy.success_threshold,
            round(policy.cooldown * 1000),
            error=error,
        )

    def override(self, key: str, state: str, reason: str) -> Reply:
        return self._call(key, "override", state, reason)

    def snapshots(self, keys: Iterable[str]) -> dict[str, Snapshot]:
        return {key: self._call(key, "read").snapshot for key in keys}

    def unchanged(self, snapshot: Snapshot) -> bool:
        """Whether the circuit is as in this snapshot, so that no script need be run. A plain read, and the cheapest."""
        try:
            brief = self._client.hget(self._name(snapshot.key), "brief")
        except (RedisError, OSError) as failure:
            raise self._unavailable(failure) from failure
        known = f"{snapshot.shown_state}:{snapshot.generation}:{snapshot.failure_count}:{snapshot.override_revision}"
        return brief == known or (brief is None and known == "closed:0:0:0")

    def merge(self, snapshot: Snapshot, released: str | None = None) -> Snapshot:
        return self._call(snapshot.key, "merge", json.dumps(snapshot.told()), released or "").snapshot

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the server answers."""
        try:
            self._client.ping()
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    def listen(self, heard: Callable[[Snapshot], None], lost: Callable[[], None], stop: Flag) -> None:
        """Call `heard` for each change of any circuit, until `stop` is set; `lost` whenever some may have been missed.

        Blocks: it is the body of a thread.
        """
        while not stop.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(self._channel)
                    lost()
                    while not stop.is_set():
                        message = channel.get_message(timeout=0.2)
                        if message is not None:
                            change = json.loads(message["data"])
                            heard(Snapshot.read(change["key"], json.loads(change["snapshot"])))
            except (RedisError, OSError, ValueError, LookupError, TypeError) as error:  # or what is no message of ours
                _log.debug("Redis does not tell of changes: %s", error)
                stop.wait(0.25)

    def close(self) -> None:
        if self._client_of_process is not None:
            self._client_of_process.close()
            self._client_of_process = None

    def forget(self) -> None:
        """Give up connections that belong to the parent process, without closing them."""
        self._client_of_process = None

    @property
    def _client(self) -> Any:
        if self._client_of_process is None:
            if self._cluster:
                self._client_of_process = RedisCluster.from_url(self._url, retry=Retry(NoBackoff(), 0), **self._options)
            else:
                self._client_of_process = redis.Redis.from_url(self._url, retry=Retry(NoBackoff(), 0), **self._options)
        return self._client_of_process

    def _name(self, key: str) -> str:
        return f"{self._prefix}:{{{key}}}"

    def _call(self, key: str, operation: str, *arguments: str | int, error: str | None = None) -> Reply:
        name = self._name(key)
        try:
            try:
                answer = self._client.evalsha(_SHA, 1, name, self._channel, key, operation, *arguments)
            except NoScriptError:
                answer = self._client.eval(_SCRIPT, 1, name, self._channel, key, operation, *arguments)
        except (RedisError, OSError) as failure:
            raise self._unavailable(failure) from failure
        return self._reply(key, answer, error)

    def _reply(self, key: str, answer: Sequence[Any], error: str | None) -> Reply:
        allowed, retry_after, token, event, from_state, to_state, encoded = answer
        snapshot = Snapshot.read(key, json.loads(encoded))
        return Reply(
            snapshot=snapshot,
            allowed=bool(allowed),
            retry_after=retry_after / 1000 if retry_after else None,
            token=token or None,
            event=Event(event, key, from_state, to_state, snapshot.generation, self.name, error) if event else None,
        )

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"Redis did not answer: {type(error).__name__}: {error}")

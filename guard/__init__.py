"""Guard keeps a booking database true. What an application needs is here; each name is loaded when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.booking import BookingGuard as BookingGuard
    from guard.breaker import GLOBAL_KEY as GLOBAL_KEY
    from guard.breaker import CircuitBreaker as CircuitBreaker
    from guard.breaker import service_key as service_key
    from guard.breaker import staff_key as staff_key
    from guard.deadline import remaining_time as remaining_time
    from guard.errors import CircuitOpenError as CircuitOpenError
    from guard.errors import GuardError as GuardError
    from guard.errors import OperationTimeoutError as OperationTimeoutError
    from guard.retrying import RetryBudget as RetryBudget
    from guard.retrying import retry as retry
    from guard.settings import Settings as Settings
    from guard.stores.fallback import FallbackStore as FallbackStore
    from guard.stores.memory import MemoryStore as MemoryStore
    from guard.stores.postgres import PostgresStore as PostgresStore
    from guard.stores.redis import RedisStore as RedisStore

_EXPORTS = {
    "BookingGuard": "guard.booking",
    "CircuitBreaker": "guard.breaker",
    "CircuitOpenError": "guard.errors",
    "FallbackStore": "guard.stores.fallback",
    "GLOBAL_KEY": "guard.breaker",
    "GuardError": "guard.errors",
    "MemoryStore": "guard.stores.memory",
    "OperationTimeoutError": "guard.errors",
    "PostgresStore": "guard.stores.postgres",
    "RedisStore": "guard.stores.redis",
    "RetryBudget": "guard.retrying",
    "Settings": "guard.settings",
    "remaining_time": "guard.deadline",
    "retry": "guard.retrying",
    "service_key": "guard.breaker",
    "staff_key": "guard.breaker",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'guard' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)

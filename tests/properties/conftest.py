"""How many examples the property tests take: the same few each time, or with `make million` many anew."""

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=200, derandomize=True, **COMMON)
settings.register_profile("many", max_examples=20_000, **COMMON)
settings.load_profile("few")

"""How many examples the property tests take: the same few each time, or as many as a profile asks for.

pytest tests/properties/test_parsers.py --hypothesis-profile=million
"""

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=200, derandomize=True, **COMMON)
settings.register_profile("million", max_examples=1_000_000, **COMMON)
settings.load_profile("few")

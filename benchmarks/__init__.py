"""Latency suites (pytest-benchmark) and the report made of them: `make bench`. Never run in CI."""

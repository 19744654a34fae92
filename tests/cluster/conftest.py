"""Fixtures of tests against a real API server."""

from cluster_server import restricted, server  # noqa: F401 - fixtures

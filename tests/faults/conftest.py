"""Homes and gates, as the tests of the whole house have them."""

from tests.fixtures import gate, home

__all__ = ["gate", "home"]

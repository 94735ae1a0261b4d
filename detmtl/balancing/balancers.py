"""Every way to balance tasks, told apart in settings by `kind`."""

from detmtl.balancing.fixed import FixedSettings

AnyBalancer = FixedSettings
"""Becomes a union discriminated by `kind` with the second method."""

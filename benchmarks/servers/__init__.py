"""Servers that ours is measured beside; those of peers run in environments of their own."""

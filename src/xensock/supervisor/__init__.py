"""Unmodified programs on the same kernel: launch, filter, notification loop, names."""

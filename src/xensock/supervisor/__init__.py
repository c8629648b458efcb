"""Unmodified programs on this kernel: guest launch, seccomp filter, notification loop."""

"""What the tests of the backend's modules share."""

from __future__ import annotations

from servingkit import serving

__all__ = ["serving"]

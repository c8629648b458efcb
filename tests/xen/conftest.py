"""The Xen bed takes minutes: `make xen` asks for it, and nothing else collects these tests."""

from __future__ import annotations

import os

if not os.environ.get("XENSOCK_XEN_BED"):
    collect_ignore_glob = ["test_*.py"]

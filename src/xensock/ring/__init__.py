"""Command and data rings in shared memory: the C core's Python face, and a pure-Python twin."""

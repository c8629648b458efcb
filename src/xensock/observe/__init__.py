"""What people and programs see of the calls."""

from xensock.observe.trace import TraceWriter, record_from_json, record_to_json

__all__ = ["TraceWriter", "record_from_json", "record_to_json"]

"""The vocabulary of XenSock: addresses, socket calls, decisions, records. Frozen data, no IO."""

from xensock.calls.address import AddressError, Endpoint, IPAddress, family_of
from xensock.calls.call import Caller, Decision, Limit, Protocol, Subject, Verb
from xensock.calls.record import Outcome, Path, Record

__all__ = [
    "AddressError",
    "Caller",
    "Decision",
    "Endpoint",
    "IPAddress",
    "Limit",
    "Outcome",
    "Path",
    "Protocol",
    "Record",
    "Subject",
    "Verb",
    "family_of",
]

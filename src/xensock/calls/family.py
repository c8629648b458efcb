"""AF_XENSOCK: an address family of its own, which never mixes with the guest's AF_INET.

The number is "XS", beyond what kernels have (AF_MAX is below 64): without XenSock socket(2) says EAFNOSUPPORT. An
address is a `struct sockaddr_in6` with this family; IPv4 addresses are mapped, as ::ffff:198.51.100.7.
"""

from __future__ import annotations

AF_XENSOCK = 0x5853

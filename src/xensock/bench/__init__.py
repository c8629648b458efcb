"""Native against XenSock, in one run: what `xensock bench` measures and how."""

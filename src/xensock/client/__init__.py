"""XenSock's own socket API for guests: `xensock.socket` and what belongs to it. docs/reference/sockets.md"""

"""For those who write transports or sockets: what must hold, as checks that run against theirs.

`sockets` compares sockets with the kernel's, call by call, driven by Hypothesis (install `hypothesis`);
`transports` are the rules of xensock.transport.base. docs/reference/testing.md
"""

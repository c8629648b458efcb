"""The test world: a small internet in network namespaces, and guests that run on its host.

`namespaces` makes one namespace usable from tests, `internet` joins several into a world with
servers and names, `vpn` adds a tunnel, `runner` runs a program natively and in guests, and
`fixtures` is what pytest sees. Contacts nothing outside; needs root on Linux, else tests skip.
"""

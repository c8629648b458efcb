"""XenSock: the socket calls of a guest without a network card, carried out by a backend."""

__version__ = "0.1.0"

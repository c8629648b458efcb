"""Who carries the calls out: this host's sockets and names."""

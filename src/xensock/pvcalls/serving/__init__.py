"""What a backend does for one guest: the handshake, the commands, the sockets behind them."""

# A driver domain: its network is its loopback, where the far end of the probes serves.
cd /guest
ip addr add 198.51.100.1/32 dev lo
ip addr add 198.51.100.2/32 dev lo
export PYTHONPATH=/opt/xensock:/opt/needed
python3 peer.py 198.51.100.1 &
python3 -c '
import socket
listener = socket.create_server(("198.51.100.2", 7100))
while True:
    with listener.accept()[0] as sock:
        sock.sendall(b"far")
' &
python3 client.py 198.51.100.1 8500 &
python3 -m xensock backend --listen xen: --deny 198.51.100.1:7999 --trace-file /dev/hvc0

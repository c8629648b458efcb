# Three ways out of one domain.
insmod /modules/xen-netfront.ko
for i in 1 2 3 4 5 6 7 8 9 10; do
    ip link set eth0 up 2>/dev/null && break
    sleep 1
done
ip addr add 192.0.2.2/24 dev eth0
cat >/tmp/three.py <<'P'
import socket
for address in ("198.51.100.1", "198.51.100.2", "192.0.2.1"):
    with socket.create_connection((address, 7100), 60) as sock:
        print("told", address, sock.recv(100).decode(), flush=True)
P
for name in veth dummy inet_diag tcp_diag udp_diag unix_diag; do insmod /modules/$name.ko; done
export PYTHONPATH=/opt/xensock
python3 -m xensock run --backend near=xen:0 --backend far=xen:1 \
    --route 198.51.100.2=far --route 192.0.2.0/24=host -- python3 /tmp/three.py

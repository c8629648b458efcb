# XenSock's frontend: Python's sockets, by xensock.install().
cd /guest
export PYTHONPATH=/opt/xensock INSTALL=1 XENSOCK=xen:
port=$(sed -n "s/.* port=\([0-9]*\).*/\1/p" /proc/cmdline)
python3 probe.py 198.51.100.1 "${port:-8500}"

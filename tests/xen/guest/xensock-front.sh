# XenSock's frontend: Python's sockets, by xensock.install().
cd /guest
export PYTHONPATH=/opt/xensock INSTALL=1 XENSOCK=xen:
python3 probe.py 198.51.100.1 8500

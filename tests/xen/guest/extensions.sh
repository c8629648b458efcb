# XenSock's frontend with every extension that it has. A ring of 2^10 pages is more than processes may grant by default.
cd /guest
echo 65536 >/sys/module/xen_gntalloc/parameters/limit
export PYTHONPATH=/opt/xensock
python3 extensions-inside.py 198.51.100.1

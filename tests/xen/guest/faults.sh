# What one domU can do to Linux's backend.
cd /guest
export PYTHONPATH=/opt/xensock:/opt/needed
python3 faults-inside.py

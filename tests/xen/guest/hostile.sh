# A domU that breaks every rule.
cd /guest
export PYTHONPATH=/opt/xensock:/opt/needed
python3 hostile-inside.py 198.51.100.1 1

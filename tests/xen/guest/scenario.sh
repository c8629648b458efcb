# In dom0: a backend of the kind $1 (linux: Linux's own; mended: the same with its known fault mended; xensock), a domU of type $2 (pv or pvh) with $3 processors whose
# script is $4; prints its console, what the peer heard, and the backend's log.
exec 2>&1
BACK=$1 TYPE=$2 CPUS=$3 SCRIPT=$4
export PYTHONPATH=/payload/lib PYTHONDONTWRITEBYTECODE=1
ip address add 198.51.100.1/32 dev lo
python3 /payload/peer.py 198.51.100.1 >/tmp/peer.log &
(
    until printf 'hello\n' | nc -w 30 198.51.100.1 8500 >/tmp/echoed; do sleep 0.2; done
    echo "client got $(cat /tmp/echoed)" >>/tmp/peer.log
) 2>/dev/null &
case $BACK in
linux) modprobe pvcalls-back ;;
mended) modprobe pvcalls-back-mended ;;
xensock)
    python3 -m xensock backend --listen xen: --trace-file /tmp/trace --deny 198.51.100.1:7999 \
        $BACKEND_OPTIONS >/tmp/backend.log 2>&1 &
    tries=0
    until grep -q 'listening' /tmp/backend.log || [ $tries -gt 150 ]; do sleep 0.2; tries=$((tries + 1)); done
    ;;
esac
echo "+ backend: $(tail -n 1 /tmp/backend.log 2>/dev/null)"
cat >/tmp/domu.cfg <<END
name = "guest"
type = "$TYPE"
kernel = "/boot/vmlinux"
ramdisk = "/payload/domu.gz"
memory = 300
vcpus = $CPUS
extra = "console=hvc0 quiet loglevel=4 panic=-1 rdinit=/init script=$SCRIPT"
pvcalls = ["backend=0"]
on_crash = "destroy"
on_poweroff = "destroy"
END
echo "+ domU"
timeout -s KILL 90 xl create /tmp/domu.cfg </dev/null || {
    cat /tmp/backend.log
    xl dmesg | tail -n 5
    exit 1
}
tries=0
until grep -q DOMU-DONE /var/log/xen/console/guest-guest.log || [ $tries -gt ${TRIES:-600} ]; do
    sleep 0.5
    tries=$((tries + 1))
done
cat /var/log/xen/console/guest-guest.log
echo "--- peer"
cat /tmp/peer.log
echo "--- backend"
[ $BACK = xensock ] && cat /tmp/backend.log /tmp/trace
xenstore-ls -f /local/domain/0/backend/pvcalls 2>/dev/null
dmesg | tail -n 3

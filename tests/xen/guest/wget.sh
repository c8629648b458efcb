# busybox's wget, with AF_INET replaced by Linux's PV Calls frontend. Then a connection that is open when the domain goes.
insmod /modules/pvcallsfront.ko
insmod /modules/pvcalls-shim.ko family=2
cd /tmp
echo "began as $(sed -n 's/.* who=\([a-z]*\).*/\1/p' /proc/cmdline)"
for port in 7801 7802; do
    if wget -q -O body "http://198.51.100.1:$port/body" 2>error; then
        echo "fetched $port $(sha256sum <body | cut -d' ' -f1)"
    else
        echo "refused $port $(tr -d '\r' <error | tail -n 1)"
    fi
done
echo wget-done
case "$(cat /proc/cmdline)" in
    *until-reboot*) ;;
    *until-destroyed*) exec sleep 1000 ;;
    *) exit 0 ;;
esac
wget -q -O /dev/null http://198.51.100.1:7803/endless &
wget -q -O - http://198.51.100.1:7803/next
echo reboots
reboot -f
sleep 1000

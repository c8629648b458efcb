at=http://198.51.100.1:7803
curl -s -S --max-time 120 -o /tmp/body $at/body
echo "fetched $(sha256sum </tmp/body | cut -d' ' -f1)"
port=$(curl -s -S $at/port)
sh /guest/nginx.sh "$port" &
curl -s -S -o /dev/null $at/endless &
curl -s -S -o /dev/null $at/next
touch /tmp/reboot
wait

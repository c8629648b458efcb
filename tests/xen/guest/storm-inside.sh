# Three at once, two that fetch and one that leaves while it is sent to.
at=http://198.51.100.1:7780
rounds=$(sed -n 's/.* rounds=\([0-9]*\).*/\1/p' /proc/cmdline)
for round in $(seq "$rounds"); do
    for number in 1 2; do
        curl -s -S --max-time 60 -o /tmp/body$number $at/body || echo "curl failed: $?" &
    done
    curl -s -S --max-time 60 $at/endless | head -c 300000 | wc -c &
    wait
    sha256sum /tmp/body1 /tmp/body2 | cut -d' ' -f1 | uniq -c
    rm /tmp/body1 /tmp/body2
done

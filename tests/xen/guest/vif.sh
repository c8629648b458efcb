#!/bin/sh
# What Xen's tools run for an interface of a domU: dom0's end has an address.
[ "$1" = online ] || exit 0
ip address add 192.0.2.1/24 dev "$vif"
ip link set "$vif" up
xenstore-write "$XENBUS_PATH/hotplug-status" connected

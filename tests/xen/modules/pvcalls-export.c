// SPDX-License-Identifier: GPL-2.0
/* Linux's PV Calls frontend has functions that nobody calls and that it does not export; the shim needs them. */
#include <linux/module.h>
#include <linux/poll.h>
#include <net/sock.h>

#include "pvcalls-front.h"

EXPORT_SYMBOL_GPL(pvcalls_front_accept);
EXPORT_SYMBOL_GPL(pvcalls_front_bind);
EXPORT_SYMBOL_GPL(pvcalls_front_connect);
EXPORT_SYMBOL_GPL(pvcalls_front_listen);
EXPORT_SYMBOL_GPL(pvcalls_front_poll);
EXPORT_SYMBOL_GPL(pvcalls_front_recvmsg);
EXPORT_SYMBOL_GPL(pvcalls_front_release);
EXPORT_SYMBOL_GPL(pvcalls_front_sendmsg);
EXPORT_SYMBOL_GPL(pvcalls_front_socket);

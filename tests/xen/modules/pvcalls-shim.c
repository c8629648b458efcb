// SPDX-License-Identifier: GPL-2.0
/*
 * A socket family on top of Linux's pvcalls-front, so that programs reach it: stream sockets of family 18, or, with
 * family=2, those of AF_INET, whose own family is taken away then.
 */
#include <linux/in.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/poll.h>
#include <net/sock.h>

#include "pvcalls-front.h"

static int family = 18; /* AF_ASH, which Linux does not have */
module_param(family, int, 0444);

static struct proto shim_proto = {
	.name = "pvcalls",
	.owner = THIS_MODULE,
	.obj_size = sizeof(struct sock),
};

static int shim_release(struct socket *sock)
{
	struct sock *sk = sock->sk;
	int ret;

	if (!sk)
		return 0;
	ret = pvcalls_front_release(sock);
	sock_orphan(sk);
	sock->sk = NULL;
	sock_put(sk);
	return ret;
}

static int shim_accept(struct socket *sock, struct socket *newsock, int flags, bool kern)
{
	int ret = pvcalls_front_accept(sock, newsock, flags);
	void *map;

	/* The frontend allocates the new socket's sock and leaves it uninitialised. Its map is what it keeps there. */
	if (ret || !newsock->sk)
		return ret;
	map = newsock->sk->sk_send_head;
	sock_init_data(newsock, newsock->sk);
	newsock->sk->sk_send_head = map;
	newsock->state = SS_CONNECTED;
	return 0;
}

/* Version 1 has no names. */
static int shim_getname(struct socket *sock, struct sockaddr *address, int peer)
{
	struct sockaddr_in *in = (struct sockaddr_in *)address;

	memset(in, 0, sizeof(*in));
	in->sin_family = AF_INET;
	return sizeof(*in);
}

/* Nor options: those that programs set by habit are taken, as without them they would not even start. */
static int shim_setsockopt(struct socket *sock, int level, int name, sockptr_t value, unsigned int size)
{
	return 0;
}

static struct proto_ops shim_ops = {
	.owner = THIS_MODULE,
	.accept = shim_accept,
	.bind = pvcalls_front_bind,
	.connect = pvcalls_front_connect,
	.getname = shim_getname,
	.listen = pvcalls_front_listen,
	.mmap = sock_no_mmap,
	.poll = pvcalls_front_poll,
	.recvmsg = pvcalls_front_recvmsg,
	.release = shim_release,
	.sendmsg = pvcalls_front_sendmsg,
	.sendpage = sock_no_sendpage,
	.setsockopt = shim_setsockopt,
	.shutdown = sock_no_shutdown,
	.socketpair = sock_no_socketpair,
};

static int shim_create(struct net *net, struct socket *sock, int protocol, int kern)
{
	struct sock *sk;
	int ret;

	if (sock->type != SOCK_STREAM)
		return -ESOCKTNOSUPPORT;
	if (protocol && protocol != IPPROTO_TCP)
		return -EPROTONOSUPPORT;
	sk = sk_alloc(net, family, GFP_KERNEL, &shim_proto, kern);
	if (!sk)
		return -ENOMEM;
	sock_init_data(sock, sk);
	sock->ops = &shim_ops;
	ret = pvcalls_front_socket(sock);
	if (ret) {
		sock->ops = NULL;
		sock_orphan(sk);
		sock->sk = NULL;
		sock_put(sk);
	}
	return ret;
}

static struct net_proto_family shim_family = {
	.create = shim_create,
	.owner = THIS_MODULE,
};

static int __init shim_init(void)
{
	int ret;

	shim_family.family = family;
	shim_ops.family = family;
	if (family == AF_INET)
		sock_unregister(AF_INET);
	ret = sock_register(&shim_family);
	pr_info("pvcalls-shim: family %d: %d\n", family, ret);
	return ret;
}

static void __exit shim_exit(void)
{
	sock_unregister(family);
}

module_init(shim_init);
module_exit(shim_exit);
MODULE_DESCRIPTION("Stream sockets carried out by a PV Calls backend");
MODULE_LICENSE("GPL");

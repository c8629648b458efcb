/* xensock._core: the C core's Python face (limited API). Mechanics only; every decision is Python's. */
#include "ext.h"

#include "../core/connect.h"
#include "../core/epollcarry.h"
#include "../core/notify.h"
#include "../core/sys.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <sys/uio.h>
#include <unistd.h>

static PyObject *connect_start(PyObject *self, PyObject *args)
{
	int fd, error;
	unsigned wait_us;
	Py_buffer addr;

	(void)self;
	if (!PyArg_ParseTuple(args, "iy*I:connect_start", &fd, &addr, &wait_us))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = xs_connect_start(fd, addr.buf, (socklen_t)addr.len, wait_us);
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&addr);
	return PyLong_FromLong(error);
}

static PyObject *epoll_carry(PyObject *self, PyObject *args)
{
	int epfd, op, sock, number, error;
	unsigned events;
	unsigned long long data;

	(void)self;
	if (!PyArg_ParseTuple(args, "iiiiIK:epoll_carry", &epfd, &op, &sock, &number, &events, &data))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = xs_epoll_carry(epfd, op, sock, number, events, data);
	Py_END_ALLOW_THREADS
	return PyLong_FromLong(error);
}

/* Whether descriptor tfd of process pid is watched by its epoll descriptor efd (kcmp(2)); -1 where the kernel cannot say. */
static PyObject *epoll_watches(PyObject *self, PyObject *args)
{
	int pid, efd, tfd;
	long r;
	struct { uint32_t efd, tfd, toff; } slot; /* struct kcmp_epoll_slot, which older headers lack */

	(void)self;
	if (!PyArg_ParseTuple(args, "iii:epoll_watches", &pid, &efd, &tfd))
		return NULL;
	slot.efd = (uint32_t)efd;
	slot.tfd = (uint32_t)tfd;
	slot.toff = 0;
	r = syscall(SYS_kcmp, pid, pid, 7 /* KCMP_EPOLL_TFD */, tfd, &slot);
	if (r < 0)
		return PyLong_FromLong(errno == ENOENT ? 0 : -1);
	return PyLong_FromLong(r == 0);
}

/* A guest's memory may be a file of its own file system, which answers when it likes (fuse(4)): nobody else shall wait. */
static PyObject *read_memory(PyObject *self, PyObject *args)
{
	int pid;
	unsigned long long addr;
	Py_ssize_t len, n;
	PyObject *out;
	struct iovec here, there;

	(void)self;
	if (!PyArg_ParseTuple(args, "iKn:read_memory", &pid, &addr, &len))
		return NULL;
	out = PyBytes_FromStringAndSize(NULL, len);
	if (!out)
		return NULL;
	here.iov_base = PyBytes_AsString(out);
	here.iov_len = there.iov_len = (size_t)len;
	there.iov_base = (void *)(uintptr_t)addr;
	Py_BEGIN_ALLOW_THREADS
	n = process_vm_readv(pid, &here, 1, &there, 1, 0);
	Py_END_ALLOW_THREADS
	if (n != len) {
		Py_DECREF(out);
		errno = EFAULT;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return out;
}

static PyObject *write_memory(PyObject *self, PyObject *args)
{
	int pid;
	unsigned long long addr;
	Py_buffer data;
	struct iovec here, there;
	ssize_t n;

	(void)self;
	if (!PyArg_ParseTuple(args, "iKy*:write_memory", &pid, &addr, &data))
		return NULL;
	here.iov_base = data.buf;
	here.iov_len = there.iov_len = (size_t)data.len;
	there.iov_base = (void *)(uintptr_t)addr;
	Py_BEGIN_ALLOW_THREADS
	n = process_vm_writev(pid, &here, 1, &there, 1, 0);
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&data);
	if (n != (ssize_t)here.iov_len) {
		errno = EFAULT;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

/* Landlock's ABI version (landlock_create_ruleset(2)), 0 where there is none. */
static PyObject *landlock_abi(PyObject *self, PyObject *none)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1u /* LANDLOCK_CREATE_RULESET_VERSION */);

	(void)self;
	(void)none;
	return PyLong_FromLong(abi < 0 ? 0 : abi);
}

static PyObject *notify(PyObject *self, PyObject *arg)
{
	int fd = (int)PyLong_AsLong(arg);

	(void)self;
	if (fd == -1 && PyErr_Occurred())
		return NULL;
	xs_notify(fd);
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{"connect_start", connect_start, METH_VARARGS, "connect_start(fd, sockaddr, wait_us) -> errno; EINPROGRESS: under way"},
	{"epoll_carry", epoll_carry, METH_VARARGS, "epoll_carry(epfd, op, sock, number, events, data) -> errno"},
	{"epoll_watches", epoll_watches, METH_VARARGS, "epoll_watches(pid, efd, tfd) -> 1, 0 or -1 (unknown)"},
	{"landlock_abi", landlock_abi, METH_NOARGS, "landlock_abi() -> ABI version, 0 for none"},
	{"notify", notify, METH_O, "notify(eventfd): add 1; never blocks, whoever else holds it"},
	{"read_memory", read_memory, METH_VARARGS, "read_memory(pid, address, length) -> bytes"},
	{"write_memory", write_memory, METH_VARARGS, "write_memory(pid, address, data)"},
	{NULL, NULL, 0, NULL},
};

static const struct { const char *name; long nr; } calls[] = {
#define CALL(n) {#n, SYS_##n}
	CALL(socket), CALL(connect), CALL(bind), CALL(listen), CALL(ioctl), CALL(sendto), CALL(sendmsg), CALL(sendmmsg), CALL(setsockopt), CALL(getsockopt),
	CALL(io_uring_setup), CALL(io_uring_enter), CALL(io_uring_register), CALL(recvfrom), CALL(recvmsg), CALL(read), CALL(write),
	CALL(socketpair), CALL(request_key), CALL(accept4), CALL(kcmp),
#ifdef SYS_accept
	CALL(accept),
#endif
#undef CALL
};

static int fill(PyObject *m)
{
	PyObject *d = PyDict_New();

	if (!d)
		return -1;
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		PyObject *v = PyLong_FromLong(calls[i].nr);

		if (!v || PyDict_SetItemString(d, calls[i].name, v)) {
			Py_XDECREF(v);
			Py_DECREF(d);
			return -1;
		}
		Py_DECREF(v);
	}
	if (PyModule_AddObjectRef(m, "SYS", d)) {
		Py_DECREF(d);
		return -1;
	}
	Py_DECREF(d);
	if (PyModule_AddIntConstant(m, "AUDIT_ARCH", (long)XS_AUDIT_ARCH))
		return -1;
	return xs_ext_add_super(m) || xs_ext_add_mover(m) || xs_ext_add_ring(m) || xs_ext_add_pagemap(m) || xs_ext_add_udp(m) ||
			       xs_ext_add_unix(m) || xs_ext_add_evbridge(m) || xs_ext_add_ledger(m) || xs_ext_add_endring(m) ||
			       xs_ext_add_keeper(m)
		       ? -1
		       : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)fill}, {0, NULL}};
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "xensock._core", "C core of XenSock", 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&def); }

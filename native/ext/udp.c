/* The relay of datagrams, which travels as a capsule. Addresses are 16 bytes, IPv4 ones mapped. */
#include "ext.h"

#include "../core/udp.h"

#include <errno.h>
#include <string.h>

#define NAME "xensock.udp"
#define BATCH 64

struct relay {
	struct xs_udp *u; /* NULL once closed */
};

static struct xs_udp *get(PyObject *capsule)
{
	struct relay *r = PyCapsule_GetPointer(capsule, NAME);

	if (r && !r->u) {
		errno = EBADF;
		PyErr_SetFromErrno(PyExc_OSError);
	}
	return r ? r->u : NULL;
}

static void drop(PyObject *capsule)
{
	struct relay *r = PyCapsule_GetPointer(capsule, NAME);

	if (!r) {
		PyErr_Clear();
		return;
	}
	if (r->u)
		xs_udp_free(r->u);
	PyMem_Free(r);
}

static int address(const Py_buffer *b, uint8_t out[16])
{
	if (b->len != 16) {
		PyErr_SetString(PyExc_ValueError, "an address has 16 bytes");
		return -1;
	}
	memcpy(out, b->buf, 16);
	return 0;
}

static PyObject *open_relay(PyObject *self, PyObject *args)
{
	int card, record;
	Py_buffer mac, plain;
	struct relay *r;
	PyObject *capsule;

	(void)self;
	if (!PyArg_ParseTuple(args, "iy*y*p:udp_open", &card, &mac, &plain, &record))
		return NULL;
	if (mac.len != 6 || plain.len % 16 || plain.len > 64 || !(r = PyMem_Malloc(sizeof *r))) {
		PyErr_SetString(PyExc_ValueError, "a card has 6 bytes, plain addresses 16 each, four at most");
		PyBuffer_Release(&mac);
		PyBuffer_Release(&plain);
		return NULL;
	}
	r->u = xs_udp_new(card, mac.buf, plain.buf, (size_t)plain.len / 16, record != 0);
	PyBuffer_Release(&mac);
	PyBuffer_Release(&plain);
	if (!r->u) {
		PyMem_Free(r);
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	capsule = PyCapsule_New(r, NAME, drop);
	if (!capsule) {
		xs_udp_free(r->u);
		PyMem_Free(r);
	}
	return capsule;
}

static PyObject *close_relay(PyObject *self, PyObject *capsule)
{
	struct relay *r = PyCapsule_GetPointer(capsule, NAME);
	struct xs_udp *u;

	(void)self;
	if (!r)
		return NULL;
	u = r->u;
	r->u = NULL;
	if (u) {
		Py_BEGIN_ALLOW_THREADS
		xs_udp_free(u);
		Py_END_ALLOW_THREADS
	}
	Py_RETURN_NONE;
}

static PyObject *fd(PyObject *self, PyObject *capsule)
{
	struct xs_udp *u = get(capsule);

	(void)self;
	return u ? PyLong_FromLong(xs_udp_fd(u)) : NULL;
}

static PyObject *events(PyObject *self, PyObject *capsule)
{
	struct xs_udp *u = get(capsule);
	struct xs_udp_event e[BATCH];
	PyObject *list;
	size_t n;

	(void)self;
	if (!u)
		return NULL;
	n = xs_udp_events(u, e, BATCH);
	list = PyList_New((Py_ssize_t)n);
	for (size_t i = 0; list && i < n; i++) {
		PyObject *t = Py_BuildValue("(iiy#iy#iK)", (int)e[i].kind, (int)e[i].proto, (const char *)e[i].src, (Py_ssize_t)16,
					    (int)e[i].sport, (const char *)e[i].dst, (Py_ssize_t)16, (int)e[i].dport,
					    (unsigned long long)e[i].start_ns);

		if (!t)
			Py_CLEAR(list);
		else
			PyList_SetItem(list, (Py_ssize_t)i, t);
	}
	return list;
}

static PyObject *result(int error)
{
	if (error) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

static PyObject *port(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	int proto, number, sock, flags, hid, error;
	Py_buffer b;
	uint8_t addr[16];
	struct xs_udp *u;

	(void)self;
	if (!PyArg_ParseTuple(args, "Oiy*iiii:udp_port", &capsule, &proto, &b, &number, &sock, &flags, &hid))
		return NULL;
	u = get(capsule);
	error = u ? address(&b, addr) : -1;
	PyBuffer_Release(&b);
	if (error)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = xs_udp_port(u, (uint8_t)proto, addr, (uint16_t)number, sock, (unsigned)flags, (uint16_t)hid);
	Py_END_ALLOW_THREADS
	return result(error);
}

/* Common to what names a port. */
static struct xs_udp *parse_port(PyObject *args, int *proto, uint8_t addr[16], int *number, int *via, int *flag)
{
	PyObject *capsule;
	Py_buffer b;
	struct xs_udp *u;
	int error;

	if (!PyArg_ParseTuple(args, "Oiy*ii|p", &capsule, proto, &b, number, via, flag))
		return NULL;
	u = get(capsule);
	error = u ? address(&b, addr) : -1;
	PyBuffer_Release(&b);
	return error ? NULL : u;
}

static PyObject *unport(PyObject *self, PyObject *args)
{
	int proto, number, via, automatic = 0, error;
	uint8_t addr[16];
	struct xs_udp *u = parse_port(args, &proto, addr, &number, &via, &automatic);

	(void)self;
	if (!u)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = xs_udp_unport(u, (uint8_t)proto, addr, (uint16_t)number, automatic != 0, (uint8_t)via);
	Py_END_ALLOW_THREADS
	return PyBool_FromLong(!error);
}

static PyObject *has(PyObject *self, PyObject *args)
{
	int proto, number, via, unused = 0, found;
	uint8_t addr[16];
	struct xs_udp *u = parse_port(args, &proto, addr, &number, &via, &unused);

	(void)self;
	if (!u)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	found = xs_udp_has(u, (uint8_t)proto, addr, (uint16_t)number, (uint8_t)via);
	Py_END_ALLOW_THREADS
	return PyBool_FromLong(found);
}

static PyObject *decide(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	int proto, gport, rport, number, error, pinned, via;
	Py_buffer b;
	uint8_t remote[16];
	struct xs_udp *u;

	(void)self;
	if (!PyArg_ParseTuple(args, "Oiiy*iipi:udp_decide", &capsule, &proto, &gport, &b, &rport, &number, &pinned, &via))
		return NULL;
	u = get(capsule);
	error = u ? address(&b, remote) : -1;
	PyBuffer_Release(&b);
	if (error)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	xs_udp_decide(u, (uint8_t)proto, (uint16_t)gport, remote, (uint16_t)rport, number, pinned != 0, (uint8_t)via);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyObject *pin(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	int proto, gport, rport, error;
	Py_buffer to, from;
	uint8_t remote[16], src[16];
	struct xs_udp *u;

	(void)self;
	if (!PyArg_ParseTuple(args, "Oiiy*iy*:udp_pin", &capsule, &proto, &gport, &to, &rport, &from))
		return NULL;
	u = get(capsule);
	error = u ? address(&to, remote) || address(&from, src) : -1;
	PyBuffer_Release(&to);
	PyBuffer_Release(&from);
	if (error)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	xs_udp_pin(u, (uint8_t)proto, (uint16_t)gport, remote, (uint16_t)rport, src);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyObject *doubt(PyObject *self, PyObject *capsule)
{
	struct xs_udp *u = get(capsule);

	(void)self;
	if (!u)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	xs_udp_doubt(u);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyObject *count(PyObject *self, PyObject *capsule)
{
	struct xs_udp *u = get(capsule);
	size_t flows, ports;

	(void)self;
	if (!u)
		return NULL;
	xs_udp_count(u, &flows, &ports);
	return Py_BuildValue("(nn)", (Py_ssize_t)flows, (Py_ssize_t)ports);
}

/* Pure functions, for tests of the packets. */

static PyObject *read_packets(PyObject *self, PyObject *list)
{
	struct xs_fragments f;
	PyObject *out = PyList_New(0);
	Py_ssize_t n = PySequence_Size(list);

	(void)self;
	memset(&f, 0, sizeof f);
	for (Py_ssize_t i = 0; out && i < n; i++) {
		PyObject *item = PySequence_GetItem(list, i), *t;
		struct xs_datagram d;
		Py_buffer b;

		if (!item || PyObject_GetBuffer(item, &b, PyBUF_SIMPLE)) {
			Py_XDECREF(item);
			Py_CLEAR(out);
			break;
		}
		if (xs_packet_read(&f, b.buf, (size_t)b.len, &d)) {
			t = Py_BuildValue("(iy#iy#iiiOy#)", (int)d.proto, (const char *)d.src, (Py_ssize_t)16, (int)d.sport,
					  (const char *)d.dst, (Py_ssize_t)16, (int)d.dport, (int)d.ttl, (int)d.tos,
					  d.whole ? Py_True : Py_False, (const char *)d.data, (Py_ssize_t)d.len);
			if (!t || PyList_Append(out, t))
				Py_CLEAR(out);
			Py_XDECREF(t);
		}
		PyBuffer_Release(&b);
		Py_DECREF(item);
	}
	xs_fragments_free(&f);
	return n < 0 ? NULL : out;
}

static PyObject *error_packet(PyObject *self, PyObject *args)
{
	Py_buffer from, src, dst;
	int proto, sport, dport, number;
	Py_ssize_t len;
	uint8_t out[XS_ICMP_ERROR_MAX], who[16];
	struct xs_datagram d;
	struct xs_icmp e;
	PyObject *packet = NULL;

	(void)self;
	if (!PyArg_ParseTuple(args, "y*iy*iy*ini:udp_error_packet", &from, &proto, &src, &sport, &dst, &dport, &len, &number))
		return NULL;
	memset(&d, 0, sizeof d);
	d.proto = (uint8_t)proto;
	d.sport = (uint16_t)sport;
	d.dport = (uint16_t)dport;
	d.len = (size_t)len;
	d.ttl = 64;
	if (!address(&from, who) && !address(&src, d.src) && !address(&dst, d.dst)) {
		if (xs_icmp_of(number, !xs_is4(d.src), &e))
			packet = PyBytes_FromStringAndSize("", 0);
		else
			packet = PyBytes_FromStringAndSize((char *)out, (Py_ssize_t)xs_icmp_error(out, who, &d, &e));
	}
	PyBuffer_Release(&from);
	PyBuffer_Release(&src);
	PyBuffer_Release(&dst);
	return packet;
}

static PyMethodDef methods[] = {
	{"udp_open", open_relay, METH_VARARGS, "udp_open(card_fd, mac, plain, record) -> handle; takes the descriptor over"},
	{"udp_close", close_relay, METH_O, "udp_close(handle): ends the thread and closes everything"},
	{"udp_fd", fd, METH_O, "udp_fd(handle) -> descriptor that is readable while events wait"},
	{"udp_events", events, METH_O, "udp_events(handle) -> [(kind, proto, src, sport, dst, dport, start_ns)]"},
	{"udp_port", port, METH_VARARGS, "udp_port(handle, proto, addr, number, fd, flags, id); takes the descriptor over"},
	{"udp_unport", unport, METH_VARARGS, "udp_unport(handle, proto, addr, number, via, automatic) -> whether there was one"},
	{"udp_has", has, METH_VARARGS, "udp_has(handle, proto, addr, number, via) -> whether there is one"},
	{"udp_decide", decide, METH_VARARGS, "udp_decide(handle, proto, number, remote, port, errno, pinned, via)"},
	{"udp_pin", pin, METH_VARARGS, "udp_pin(handle, proto, number, remote, port, source)"},
	{"udp_doubt", doubt, METH_O, "udp_doubt(handle): ask about every flow again"},
	{"udp_count", count, METH_O, "udp_count(handle) -> (flows, ports)"},
	{"udp_read_packets", read_packets, METH_O,
	 "udp_read_packets(packets) -> [(proto, src, sport, dst, dport, ttl, tos, whole, data)]"},
	{"udp_error_packet", error_packet, METH_VARARGS, "udp_error_packet(from, proto, src, sport, dst, dport, length, errno) -> packet"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_udp(PyObject *module) { return PyModule_AddFunctions(module, methods); }

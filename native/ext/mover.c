/* xensock._core: the mover (core/mover.h). */
#include "ext.h"

#include "../core/bucket.h"
#include "../core/mover.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CAPSULE "xensock._core.mover"
#define BUCKET "xensock._core.bucket"
#define BATCH 128

/* The memory of one connection that has rings, held while the mover may touch it. */
struct held {
	struct held *next;
	uint64_t token;
	bool report;
	Py_buffer view[2][2]; /* by side: indexes page, data */
};

/* The capsule's own record, so that a closed mover is told from a freed one. */
struct handle {
	struct xs_mover *mover;
	struct held **held; /* by the low half of the token, which is used again */
	size_t held_size;
};

static void let_go(struct held *h, int side)
{
	PyBuffer_Release(&h->view[side][0]);
	PyBuffer_Release(&h->view[side][1]);
}

static struct held **find(struct handle *h, uint64_t token)
{
	struct held **p;

	if ((uint32_t)token >= h->held_size)
		return NULL;
	for (p = &h->held[(uint32_t)token]; *p; p = &(*p)->next)
		if ((*p)->token == token)
			return p;
	return NULL;
}

/* Forgets a connection; whether its end is to be told. */
static bool forget(struct handle *h, uint64_t token)
{
	struct held **p = find(h, token), *gone;
	bool report;

	if (!p)
		return true; /* it has no rings: it was asked to report */
	gone = *p;
	report = gone->report;
	*p = gone->next;
	let_go(gone, 0);
	let_go(gone, 1);
	free(gone);
	return report;
}

static void forget_all(struct handle *h)
{
	for (size_t i = 0; i < h->held_size; i++)
		while (h->held[i])
			forget(h, h->held[i]->token);
	free(h->held);
	h->held = NULL;
	h->held_size = 0;
}

static void discard(PyObject *capsule)
{
	struct handle *h = PyCapsule_GetPointer(capsule, CAPSULE);

	if (!h)
		return;
	if (h->mover)
		xs_mover_free(h->mover, 0);
	forget_all(h);
	free(h);
}

static struct xs_mover *mover_of(PyObject *capsule)
{
	struct handle *h = PyCapsule_GetPointer(capsule, CAPSULE);

	if (h && !h->mover)
		PyErr_SetString(PyExc_ValueError, "the mover is closed");
	return h ? h->mover : NULL;
}

static PyObject *mover_open(PyObject *self, PyObject *args)
{
	unsigned threads;
	struct handle *h;
	PyObject *capsule;

	(void)self;
	if (!PyArg_ParseTuple(args, "I:mover_open", &threads))
		return NULL;
	h = calloc(1, sizeof *h);
	if (!h)
		return PyErr_NoMemory();
	Py_BEGIN_ALLOW_THREADS
	h->mover = xs_mover_new(threads);
	Py_END_ALLOW_THREADS
	if (!h->mover) {
		free(h);
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	capsule = PyCapsule_New(h, CAPSULE, discard);
	if (!capsule) {
		xs_mover_free(h->mover, 0);
		free(h);
	}
	return capsule;
}

static void bucket_discard(PyObject *capsule)
{
	xs_bucket_unref(PyCapsule_GetPointer(capsule, BUCKET));
}

static PyObject *bucket(PyObject *self, PyObject *args)
{
	unsigned long long rate;
	struct xs_bucket *b;
	PyObject *capsule;

	(void)self;
	if (!PyArg_ParseTuple(args, "K:bucket", &rate))
		return NULL;
	b = xs_bucket_new(rate);
	if (!b) {
		PyErr_SetString(PyExc_ValueError, "a rate is 1 to 10^12 bytes per second");
		return NULL;
	}
	capsule = PyCapsule_New(b, BUCKET, bucket_discard);
	if (!capsule)
		xs_bucket_unref(b);
	return capsule;
}

static PyObject *mover_add(PyObject *self, PyObject *args)
{
	PyObject *capsule, *slowed = Py_None;
	struct xs_bucket *b = NULL;
	struct xs_mover *m;
	int guest, far, report;
	uint64_t token;

	(void)self;
	if (!PyArg_ParseTuple(args, "Oiip|O:mover_add", &capsule, &guest, &far, &report, &slowed))
		return NULL;
	m = mover_of(capsule);
	if (!m)
		return NULL;
	if (slowed != Py_None) {
		b = PyCapsule_GetPointer(slowed, BUCKET);
		if (!b)
			return NULL;
	}
	token = xs_mover_add_slowed(m, guest, far, b, report);
	return token ? PyLong_FromUnsignedLongLong(token) : PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *mover_fd(PyObject *self, PyObject *capsule)
{
	struct xs_mover *m = mover_of(capsule);

	(void)self;
	return m ? PyLong_FromLong(xs_mover_fd(m)) : NULL;
}

static PyObject *mover_live(PyObject *self, PyObject *capsule)
{
	struct xs_mover *m = mover_of(capsule);

	(void)self;
	return m ? PyLong_FromSize_t(xs_mover_live(m)) : NULL;
}

static PyObject *mover_ended(PyObject *self, PyObject *capsule)
{
	struct xs_mover *m = mover_of(capsule);
	struct xs_ended ended[BATCH];
	PyObject *list;
	size_t n;

	(void)self;
	if (!m)
		return NULL;
	n = xs_mover_ended(m, ended, BATCH);
	list = PyList_New(0);
	for (size_t i = 0; list && i < n; i++) {
		PyObject *item;

		if (!forget(PyCapsule_GetPointer(capsule, CAPSULE), ended[i].token))
			continue;
		item = Py_BuildValue("(KKKii)", (unsigned long long)ended[i].token,
					       (unsigned long long)ended[i].bytes[0],
					       (unsigned long long)ended[i].bytes[1], ended[i].error, ended[i].side);

		if (!item || PyList_Append(list, item)) {
			Py_XDECREF(item);
			Py_DECREF(list);
			return NULL;
		}
		Py_DECREF(item);
	}
	return list;
}

static PyObject *mover_bytes(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long token;
	struct xs_mover *m;
	uint64_t bytes[2];

	(void)self;
	if (!PyArg_ParseTuple(args, "OK:mover_bytes", &capsule, &token))
		return NULL;
	m = mover_of(capsule);
	if (!m)
		return NULL;
	if (!xs_mover_bytes(m, token, bytes))
		Py_RETURN_NONE;
	return Py_BuildValue("(KK)", (unsigned long long)bytes[0], (unsigned long long)bytes[1]);
}

static PyObject *mover_close(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned linger_ms;
	struct handle *h;
	struct xs_mover *m;

	(void)self;
	if (!PyArg_ParseTuple(args, "OI:mover_close", &capsule, &linger_ms))
		return NULL;
	h = PyCapsule_GetPointer(capsule, CAPSULE);
	if (!h)
		return NULL;
	m = h->mover;
	h->mover = NULL;
	if (m) {
		Py_BEGIN_ALLOW_THREADS
		xs_mover_free(m, linger_ms);
		Py_END_ALLOW_THREADS
		forget_all(h);
	}
	Py_RETURN_NONE;
}

/* ---- rings ---- */

/* Holds the memory of a ring: 0, or -1 with an exception set and nothing held. */
static int hold(struct held *h, int side, PyObject *indexes, PyObject *data, struct xs_ring_end *e)
{
	if (PyObject_GetBuffer(indexes, &h->view[side][0], PyBUF_WRITABLE))
		return -1;
	if (PyObject_GetBuffer(data, &h->view[side][1], PyBUF_WRITABLE)) {
		PyBuffer_Release(&h->view[side][0]);
		return -1;
	}
	if (h->view[side][0].len != XS_PAGE) {
		PyErr_SetString(PyExc_ValueError, "the indexes page has 4096 bytes");
		let_go(h, side);
		return -1;
	}
	e->indexes = h->view[side][0].buf;
	e->data = h->view[side][1].buf;
	e->length = (size_t)h->view[side][1].len;
	return 0;
}

/* A ring given as a tuple; as hold(). */
static int hold_end(struct held *h, int side, PyObject *end, struct xs_ring_end *e)
{
	PyObject *indexes, *data;
	int events, urgent = 0;

	if (!PyTuple_Check(end)) {
		PyErr_SetString(PyExc_TypeError, "a ring is (indexes, data, notify_fd, event_fd, events, urgent)");
		return -1;
	}
	if (!PyArg_ParseTuple(end, "OOiip|p:ring", &indexes, &data, &e->notify_fd, &e->event_fd, &events, &urgent))
		return -1;
	e->events = events;
	e->urgent = urgent;
	e->start = NULL;
	return hold(h, side, indexes, data, e);
}

/* Room in the table for what comes next, so that nothing fails once the mover has it. */
static struct held *held_new(struct handle *h, bool report)
{
	size_t need = xs_mover_slots(h->mover) + 2, size = h->held_size ? h->held_size : 64;
	struct held *new = calloc(1, sizeof *new), **bigger;

	while (size < need)
		size *= 2;
	if (new && size != h->held_size) {
		bigger = realloc(h->held, size * sizeof(struct held *));
		if (bigger) {
			memset(bigger + h->held_size, 0, (size - h->held_size) * sizeof(struct held *));
			h->held = bigger;
			h->held_size = size;
		} else {
			free(new);
			new = NULL;
		}
	}
	if (new)
		new->report = report;
	else
		PyErr_NoMemory();
	return new;
}

static PyObject *held_done(struct handle *h, struct held *new, uint64_t token)
{
	if (!token) {
		PyErr_SetFromErrno(PyExc_OSError);
		let_go(new, 0);
		let_go(new, 1);
		free(new);
		return NULL;
	}
	new->token = token;
	new->next = h->held[(uint32_t)token];
	h->held[(uint32_t)token] = new;
	return PyLong_FromUnsignedLongLong(token);
}

/* (rx, tx, shut, stop or -1, error); false with an exception set. */
static bool start_of(PyObject *tuple, struct xs_ring_start *s)
{
	int shut;
	long long stop;

	if (!PyTuple_Check(tuple)) {
		PyErr_SetString(PyExc_TypeError, "a start is (rx, tx, shut, stop, error)");
		return false;
	}
	if (!PyArg_ParseTuple(tuple, "IIpLi:start", &s->rx, &s->tx, &shut, &stop, &s->error))
		return false;
	s->shut = shut;
	s->stopping = stop >= 0;
	s->stop = (uint32_t)stop;
	return true;
}

static PyObject *mover_add_ring(PyObject *self, PyObject *args)
{
	PyObject *capsule, *indexes, *data, *going_on = Py_None;
	struct xs_ring_start start;
	struct xs_ring_end e;
	struct xs_mover *m;
	struct handle *h;
	struct held *new;
	const char *role;
	int fd, events, report, urgent = 0;

	(void)self;
	if (!PyArg_ParseTuple(args, "OiOOsiipp|pO:mover_add_ring", &capsule, &fd, &indexes, &data, &role, &e.notify_fd,
			      &e.event_fd, &events, &report, &urgent, &going_on))
		return NULL;
	e.start = NULL;
	if (going_on != Py_None) {
		if (!start_of(going_on, &start)) {
			if (fd >= 0)
				close(fd);
			return NULL;
		}
		e.start = &start;
	}
	e.events = events;
	e.urgent = urgent;
	m = mover_of(capsule);
	new = NULL;
	if (m && strcmp(role, "front") && strcmp(role, "back"))
		PyErr_SetString(PyExc_ValueError, "role is \"front\" or \"back\"");
	else if (m)
		new = held_new(PyCapsule_GetPointer(capsule, CAPSULE), report);
	if (!new || hold(new, 0, indexes, data, &e)) {
		if (fd >= 0)
			close(fd);
		free(new);
		return NULL;
	}
	h = PyCapsule_GetPointer(capsule, CAPSULE);
	return held_done(h, new, xs_mover_add_ring(m, fd, &e, *role == 'f' ? XS_FRONT : XS_BACK, true));
}

static PyObject *mover_join(PyObject *self, PyObject *args)
{
	PyObject *capsule, *first, *second;
	struct xs_ring_end e[2];
	struct xs_mover *m;
	struct handle *h;
	struct held *new;
	int report;

	(void)self;
	if (!PyArg_ParseTuple(args, "OOOp:mover_join", &capsule, &first, &second, &report))
		return NULL;
	m = mover_of(capsule);
	if (!m)
		return NULL;
	h = PyCapsule_GetPointer(capsule, CAPSULE);
	new = held_new(h, report);
	if (!new)
		return NULL;
	if (hold_end(new, 0, first, &e[0])) {
		free(new);
		return NULL;
	}
	if (second != Py_None && hold_end(new, 1, second, &e[1])) {
		let_go(new, 0);
		free(new);
		return NULL;
	}
	return held_done(h, new, xs_mover_join(m, &e[0], second == Py_None ? NULL : &e[1], true));
}

/* What a command came to. An end that came first is reported by mover_ended() all the same. */
static PyObject *obeyed(int error, bool ended_is_fine)
{
	if (!error || (error == ESRCH && ended_is_fine))
		Py_RETURN_NONE;
	errno = error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *mover_join_other(PyObject *self, PyObject *args)
{
	PyObject *capsule, *second;
	unsigned long long token;
	struct xs_ring_end e;
	struct xs_mover *m;
	struct held **p;
	int error;

	(void)self;
	if (!PyArg_ParseTuple(args, "OKO:mover_join_other", &capsule, &token, &second))
		return NULL;
	m = mover_of(capsule);
	if (!m)
		return NULL;
	p = find(PyCapsule_GetPointer(capsule, CAPSULE), token);
	if (!p || (*p)->view[1][0].obj)
		return obeyed(p ? EISCONN : ESRCH, false);
	if (hold_end(*p, 1, second, &e))
		return NULL;
	error = xs_mover_join_other(m, token, &e);
	if (error)
		let_go(*p, 1);
	return obeyed(error, false);
}

static PyObject *mover_shutdown(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long token;
	struct xs_mover *m;
	int how, side;

	(void)self;
	if (!PyArg_ParseTuple(args, "OKii:mover_shutdown", &capsule, &token, &how, &side))
		return NULL;
	m = mover_of(capsule);
	return m ? obeyed(xs_mover_shutdown(m, token, how, side), false) : NULL;
}

static PyObject *mover_release(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long token;
	struct xs_mover *m;
	struct held **p;
	struct xs_left left = {.memory = -1};
	int reset, side, error, keep = 0;

	(void)self;
	if (!PyArg_ParseTuple(args, "OKpi|p:mover_release", &capsule, &token, &reset, &side, &keep))
		return NULL;
	m = mover_of(capsule);
	if (!m)
		return NULL;
	error = keep ? xs_mover_release_left(m, token, reset, side, &left) : xs_mover_release(m, token, reset, side);
	p = error == 0 || error == ESRCH ? find(PyCapsule_GetPointer(capsule, CAPSULE), token) : NULL;
	if (p && (side == 0 || side == 1))
		let_go(*p, side);
	if (left.memory >= 0)
		return Py_BuildValue("(iiII)", left.memory, left.fd, left.length, left.index);
	return obeyed(error, true);
}

static PyObject *mover_leaving(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long token;
	struct xs_mover *m;

	(void)self;
	if (!PyArg_ParseTuple(args, "OK:mover_leaving", &capsule, &token))
		return NULL;
	m = mover_of(capsule);
	return m ? PyLong_FromLong(xs_mover_leaving(m, token)) : NULL;
}

static PyObject *mover_notices(PyObject *self, PyObject *capsule)
{
	static const char *const kinds[] = {"", "eof", "reset", "error"};
	struct xs_mover *m = mover_of(capsule);
	struct xs_notice notices[BATCH];
	PyObject *list;
	size_t n;

	(void)self;
	if (!m)
		return NULL;
	n = xs_mover_notices(m, notices, BATCH);
	list = PyList_New((Py_ssize_t)n);
	for (size_t i = 0; list && i < n; i++) {
		PyObject *item = Py_BuildValue("(Ksii)", (unsigned long long)notices[i].token, kinds[notices[i].kind],
					       notices[i].error, notices[i].side);

		if (!item || PyList_SetItem(list, (Py_ssize_t)i, item)) {
			Py_DECREF(list);
			return NULL;
		}
	}
	return list;
}

static PyMethodDef methods[] = {
	{"mover_open", mover_open, METH_VARARGS, "mover_open(threads) -> mover"},
	{"mover_add", mover_add, METH_VARARGS,
	 "mover_add(mover, guest_fd, far_fd, report, bucket=None) -> token; takes both descriptors"},
	{"bucket", bucket, METH_VARARGS, "bucket(rate) -> what connections may move together, in bytes per second each way"},
	{"mover_fd", mover_fd, METH_O, "mover_fd(mover) -> eventfd, readable while mover_ended() has something"},
	{"mover_ended", mover_ended, METH_O, "mover_ended(mover) -> [(token, sent, received, errno, side)]"},
	{"mover_bytes", mover_bytes, METH_VARARGS, "mover_bytes(mover, token) -> (sent, received), None when it has ended"},
	{"mover_live", mover_live, METH_O, "mover_live(mover) -> number of connections"},
	{"mover_add_ring", mover_add_ring, METH_VARARGS,
	 "mover_add_ring(mover, fd, indexes, data, role, notify_fd, event_fd, events, report, urgent, start) -> token; takes fd"},
	{"mover_join", mover_join, METH_VARARGS, "mover_join(mover, ring, ring or None, report) -> token"},
	{"mover_join_other", mover_join_other, METH_VARARGS, "mover_join_other(mover, token, ring): the second one"},
	{"mover_shutdown", mover_shutdown, METH_VARARGS, "mover_shutdown(mover, token, how, side): the command SHUTDOWN"},
	{"mover_release", mover_release, METH_VARARGS, "mover_release(mover, token, reset, side, keep): the ring is not touched any more"},
	{"mover_leaving", mover_leaving, METH_VARARGS, "mover_leaving(mover, token) -> 0 stays, 1 its stream has ended, 2 gone"},
	{"mover_notices", mover_notices, METH_O, "mover_notices(mover) -> [(token, kind, errno, side)]"},
	{"mover_close", mover_close, METH_VARARGS, "mover_close(mover, linger_ms): let guests finish sending, then end everything"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_mover(PyObject *module)
{
	return PyModule_AddFunctions(module, methods);
}

/* xensock._core: the mover (core/mover.h). */
#include "ext.h"

#include "../core/mover.h"

#include <errno.h>
#include <stdlib.h>

#define CAPSULE "xensock._core.mover"
#define BATCH 128

/* The capsule's own record, so that a closed mover is told from a freed one. */
struct handle {
	struct xs_mover *mover;
};

static void discard(PyObject *capsule)
{
	struct handle *h = PyCapsule_GetPointer(capsule, CAPSULE);

	if (!h)
		return;
	if (h->mover)
		xs_mover_free(h->mover, 0);
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

static PyObject *mover_add(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	struct xs_mover *m;
	int a, b, report;
	uint64_t token;

	(void)self;
	if (!PyArg_ParseTuple(args, "Oiip:mover_add", &capsule, &a, &b, &report))
		return NULL;
	m = mover_of(capsule);
	if (!m)
		return NULL;
	token = xs_mover_add(m, a, b, report);
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
	list = PyList_New((Py_ssize_t)n);
	for (size_t i = 0; list && i < n; i++) {
		PyObject *item = Py_BuildValue("(KKKii)", (unsigned long long)ended[i].token,
					       (unsigned long long)ended[i].bytes[0],
					       (unsigned long long)ended[i].bytes[1], ended[i].error, ended[i].side);

		if (!item || PyList_SetItem(list, (Py_ssize_t)i, item)) {
			Py_DECREF(list);
			return NULL;
		}
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
	}
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{"mover_open", mover_open, METH_VARARGS, "mover_open(threads) -> mover"},
	{"mover_add", mover_add, METH_VARARGS, "mover_add(mover, guest_fd, far_fd, report) -> token; takes both descriptors"},
	{"mover_fd", mover_fd, METH_O, "mover_fd(mover) -> eventfd, readable while mover_ended() has something"},
	{"mover_ended", mover_ended, METH_O, "mover_ended(mover) -> [(token, sent, received, errno, side)]"},
	{"mover_bytes", mover_bytes, METH_VARARGS, "mover_bytes(mover, token) -> (sent, received), None when it has ended"},
	{"mover_live", mover_live, METH_O, "mover_live(mover) -> number of connections"},
	{"mover_close", mover_close, METH_VARARGS, "mover_close(mover, linger_ms): let guests finish sending, then end everything"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_mover(PyObject *module)
{
	return PyModule_AddFunctions(module, methods);
}

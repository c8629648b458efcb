/* xensock._core: event channels between Xen domains (core/evbridge.h). */
#include "ext.h"

#include "../core/evbridge.h"

#include <errno.h>

#define NAME "xensock._core.EvBridge"

static void destroy(PyObject *capsule)
{
	struct xs_evbridge *b = PyCapsule_GetContext(capsule);

	if (b) {
		Py_BEGIN_ALLOW_THREADS
		xs_evbridge_free(b);
		Py_END_ALLOW_THREADS
	}
}

/* A capsule's pointer cannot be NULL: the bridge is its context, NULL once closed. */
static struct xs_evbridge *bridge(PyObject *capsule)
{
	struct xs_evbridge *b = PyCapsule_IsValid(capsule, NAME) ? PyCapsule_GetContext(capsule) : NULL;

	if (!b)
		PyErr_SetString(PyExc_ValueError, "not an open bridge of event channels");
	return b;
}

static PyObject *outcome(int error)
{
	if (error) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

static PyObject *open_bridge(PyObject *self, PyObject *arg)
{
	static char anchor;
	int fd = (int)PyLong_AsLong(arg);
	struct xs_evbridge *b;
	PyObject *capsule;

	(void)self;
	if (fd == -1 && PyErr_Occurred())
		return NULL;
	b = xs_evbridge_new(fd);
	if (!b)
		return PyErr_SetFromErrno(PyExc_OSError);
	capsule = PyCapsule_New(&anchor, NAME, destroy);
	if (!capsule || PyCapsule_SetContext(capsule, b)) {
		Py_XDECREF(capsule);
		xs_evbridge_free(b);
		return NULL;
	}
	return capsule;
}

static PyObject *add(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	struct xs_evbridge *b;
	unsigned port, domain;
	int notify_fd, wait_fd;

	(void)self;
	if (!PyArg_ParseTuple(args, "OIIii:evbridge_add", &capsule, &port, &domain, &notify_fd, &wait_fd))
		return NULL;
	b = bridge(capsule);
	return b ? outcome(xs_evbridge_add(b, port, domain, notify_fd, wait_fd)) : NULL;
}

static PyObject *take_away(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	struct xs_evbridge *b;
	unsigned port;

	(void)self;
	if (!PyArg_ParseTuple(args, "OI:evbridge_remove", &capsule, &port))
		return NULL;
	b = bridge(capsule);
	return b ? outcome(xs_evbridge_remove(b, port)) : NULL;
}

static PyObject *close_bridge(PyObject *self, PyObject *capsule)
{
	struct xs_evbridge *b = bridge(capsule);

	(void)self;
	if (!b)
		return NULL;
	if (PyCapsule_SetContext(capsule, NULL))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	xs_evbridge_free(b);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{"evbridge_open", open_bridge, METH_O, "evbridge_open(evtchn) -> bridge; the descriptor stays the caller's"},
	{"evbridge_add", add, METH_VARARGS, "evbridge_add(bridge, port, domain, notify_fd, wait_fd)"},
	{"evbridge_remove", take_away, METH_VARARGS, "evbridge_remove(bridge, port)"},
	{"evbridge_close", close_bridge, METH_O, "evbridge_close(bridge)"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_evbridge(PyObject *module)
{
	return PyModule_AddFunctions(module, methods);
}

/* A ring of the kernel's messages, as a capsule; the interpreter's lock keeps it to one thread at a time. */
#include "ext.h"

#include "../core/endring.h"

#include <errno.h>
#include <stdlib.h>

#define NAME "xensock.endring"
#define AT_ONCE 65536 /* bytes */

static struct xs_endring *get(PyObject *capsule) { return PyCapsule_GetPointer(capsule, NAME); }

static void drop(PyObject *capsule) { xs_endring_free(get(capsule)); }

static PyObject *make(PyObject *self, PyObject *args)
{
	struct xs_endring *r;
	Py_ssize_t size;
	int fd, error;

	(void)self;
	if (!PyArg_ParseTuple(args, "in:endring_open", &fd, &size))
		return NULL;
	r = xs_endring_open(fd, (size_t)size, &error);
	if (!r) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return PyCapsule_New(r, NAME, drop);
}

static PyObject *read_some(PyObject *self, PyObject *capsule)
{
	struct xs_endring *r = get(capsule);
	uint8_t *held;
	PyObject *made;

	(void)self;
	if (!r)
		return NULL;
	held = malloc(AT_ONCE);
	if (!held)
		return PyErr_NoMemory();
	made = PyBytes_FromStringAndSize((char *)held, (Py_ssize_t)xs_endring_read(r, held, AT_ONCE));
	free(held);
	return made;
}

static PyMethodDef methods[] = {
	{"endring_open", make, METH_VARARGS, "endring_open(fd, size) -> handle"},
	{"endring_read", read_some, METH_O, "endring_read(handle) -> messages, one behind the other; b'': none now"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_endring(PyObject *module) { return PyModule_AddFunctions(module, methods); }

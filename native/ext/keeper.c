/* xensock._core: the process that keeps descriptors (core/keeper.h). */
#include "ext.h"

#include "../core/keeper.h"

static PyObject *keeper_start(PyObject *self, PyObject *args)
{
	int sock, first;
	pid_t pid;

	(void)self;
	if (!PyArg_ParseTuple(args, "ii:keeper_start", &sock, &first))
		return NULL;
	pid = xs_keeper_start(sock, first);
	return pid < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(pid);
}

static PyMethodDef methods[] = {
	{"keeper_start", keeper_start, METH_VARARGS, "keeper_start(sock, first) -> pid of a process that keeps all descriptors of this one"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_keeper(PyObject *module)
{
	return PyModule_AddFunctions(module, methods);
}

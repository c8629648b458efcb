/* What the ring types share: ring.c (command rings) and dataring.c. What each method means is in _core.pyi. */
#ifndef XS_EXT_RING_H
#define XS_EXT_RING_H

#include "ext.h"

/* An exported buffer is what makes an object open. */
static inline int is_open(const Py_buffer *buffer)
{
	if (buffer->obj)
		return 1;
	PyErr_SetString(PyExc_ValueError, "the ring is closed");
	return 0;
}

static inline int no_ring(const char *what, size_t length)
{
	PyErr_Format(PyExc_ValueError, "%s of %zu bytes at this address are none of a ring", what, length);
	return -1;
}

static inline void free_object(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	release(self);
	Py_DECREF(type);
}

extern PyType_Spec xs_dataring_spec;

#endif

/* xensock._core: data rings (core/dataring.h). */
#include "ring.h"

#include "../core/dataring.h"

struct data {
	PyObject_HEAD
	Py_buffer indexes, pages;
	struct xs_dataring ring;
};

static PyObject *data_close(PyObject *self, PyObject *none)
{
	(void)none;
	PyBuffer_Release(&((struct data *)self)->pages);
	PyBuffer_Release(&((struct data *)self)->indexes);
	Py_RETURN_NONE;
}

static int data_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"indexes", "data", "role", "events", "initialise", NULL};
	struct data *d = (struct data *)self;
	int events = 0, initialise = 0, front;
	const char *role;

	PyBuffer_Release(&d->pages);
	PyBuffer_Release(&d->indexes);
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*w*s|pp:DataRing", names, &d->indexes, &d->pages, &role, &events,
					 &initialise))
		return -1;
	front = !strcmp(role, "front");
	if (!front && strcmp(role, "back")) {
		PyErr_Format(PyExc_ValueError, "a role is \"front\" or \"back\", not \"%s\"", role);
		goto fail;
	}
	if (initialise && !front) {
		PyErr_SetString(PyExc_ValueError, "the pages are the frontend's to initialise");
		goto fail;
	}
	if (d->indexes.len != XS_PAGE || (uintptr_t)d->indexes.buf % _Alignof(struct xs_indexes)) {
		no_ring("indexes", (size_t)d->indexes.len);
		goto fail;
	}
	if (initialise)
		xs_indexes_init(d->indexes.buf);
	if (xs_dataring_init(&d->ring, d->indexes.buf, d->pages.buf, (size_t)d->pages.len, front ? XS_FRONT : XS_BACK, events)) {
		no_ring("data pages", (size_t)d->pages.len);
		goto fail;
	}
	return 0;
fail:
	PyBuffer_Release(&d->pages);
	PyBuffer_Release(&d->indexes);
	return -1;
}

static void data_dealloc(PyObject *self)
{
	PyBuffer_Release(&((struct data *)self)->pages);
	PyBuffer_Release(&((struct data *)self)->indexes);
	free_object(self);
}

static struct xs_dataring *data_of(PyObject *self)
{
	struct data *d = (struct data *)self;

	return is_open(&d->pages) ? &d->ring : NULL;
}

static PyObject *data_size(PyObject *self, void *unused)
{
	struct xs_dataring *r = data_of(self);

	(void)unused;
	return r ? PyLong_FromUnsignedLong(r->rx.size) : NULL;
}

static PyObject *data_readable(PyObject *self, void *unused)
{
	struct xs_dataring *r = data_of(self);

	(void)unused;
	return r ? PyLong_FromUnsignedLong(xs_readable(&r->rx)) : NULL;
}

static PyObject *data_room(PyObject *self, void *unused)
{
	struct xs_dataring *r = data_of(self);

	(void)unused;
	return r ? PyLong_FromUnsignedLong(xs_room(&r->tx)) : NULL;
}

/* A copy of up to `max` readable bytes; their number in *length. */
static PyObject *copy(const struct xs_dataring *r, PyObject *max, uint32_t *length)
{
	Py_ssize_t most = PyLong_AsSsize_t(max);
	PyObject *bytes;

	if (most == -1 && PyErr_Occurred())
		return NULL;
	if (most < 0) {
		PyErr_SetString(PyExc_ValueError, "a number of bytes is not negative");
		return NULL;
	}
	*length = xs_readable(&r->rx);
	if (*length > (size_t)most)
		*length = (uint32_t)most;
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)*length);
	if (bytes)
		xs_copy_out(&r->rx, 0, PyBytes_AsString(bytes), *length);
	return bytes;
}

static PyObject *data_peek(PyObject *self, PyObject *max)
{
	struct xs_dataring *r = data_of(self);
	uint32_t n;

	return r ? copy(r, max, &n) : NULL;
}

static PyObject *data_read(PyObject *self, PyObject *max)
{
	struct xs_dataring *r = data_of(self);
	PyObject *bytes, *result;
	uint32_t n;

	if (!r)
		return NULL;
	bytes = copy(r, max, &n);
	if (!bytes)
		return NULL;
	result = PyTuple_New(2);
	if (!result || PyTuple_SetItem(result, 0, bytes)) {
		if (!result)
			Py_DECREF(bytes);
		Py_XDECREF(result);
		return NULL;
	}
	PyTuple_SetItem(result, 1, PyBool_FromLong(n && xs_advance(&r->rx, n)));
	return result;
}

static PyObject *data_write(PyObject *self, PyObject *object)
{
	struct xs_dataring *r = data_of(self);
	Py_buffer view;
	uint32_t n;

	if (!r || PyObject_GetBuffer(object, &view, PyBUF_SIMPLE))
		return NULL;
	n = xs_error(&r->tx) ? 0 : xs_room(&r->tx); /* at the backend `in` goes on when `out` has ended */
	if (n > (size_t)view.len)
		n = (uint32_t)view.len;
	xs_copy_in(&r->tx, 0, view.buf, n);
	PyBuffer_Release(&view);
	return Py_BuildValue("(IN)", n, PyBool_FromLong(n && xs_advance(&r->tx, n)));
}

static PyObject *data_arm_read(PyObject *self, PyObject *none)
{
	struct xs_dataring *r = data_of(self);

	(void)none;
	return r ? PyBool_FromLong(xs_rx_arm(&r->rx)) : NULL;
}

static PyObject *data_arm_write(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"wanted", NULL};
	struct xs_dataring *r = data_of(self);
	Py_ssize_t wanted = 1;

	if (!r || !PyArg_ParseTupleAndKeywords(args, kwargs, "|n:arm_write", names, &wanted))
		return NULL;
	if (wanted < 1 || wanted > (Py_ssize_t)r->tx.size) {
		PyErr_Format(PyExc_ValueError, "a half of %u bytes never has room for %zd", r->tx.size, wanted);
		return NULL;
	}
	return PyBool_FromLong(xs_tx_arm(&r->tx, (uint32_t)wanted));
}

static PyObject *data_read_error(PyObject *self, void *unused)
{
	struct xs_dataring *r = data_of(self);
	int32_t error;

	(void)unused;
	if (!r)
		return NULL;
	xs_readable_or_error(&r->rx, &error);
	return PyLong_FromLong(error);
}

/* `which`: non-NULL for `out`. */
static PyObject *data_get_error(PyObject *self, void *which)
{
	struct xs_dataring *r = data_of(self);

	if (!r)
		return NULL;
	if (r->role == XS_BACK)
		return PyLong_FromLong(which ? r->out_error : r->in_error);
	return PyLong_FromLong(xs_error(which ? &r->tx : &r->rx));
}

static int data_set_error(PyObject *self, PyObject *value, void *which)
{
	struct xs_dataring *r = data_of(self);
	long error;

	if (!r)
		return -1;
	if (r->role != XS_BACK || !value) {
		PyErr_SetString(PyExc_AttributeError, "the error words are the backend's to set");
		return -1;
	}
	error = PyLong_AsLong(value);
	if (error == -1 && PyErr_Occurred())
		return -1;
	if (error > 0 || error < INT32_MIN) {
		PyErr_Format(PyExc_ValueError, "an error word is 0 or a negated errno, not %ld", error);
		return -1;
	}
	xs_dataring_fail(r, which ? 0 : (int32_t)error, which ? (int32_t)error : 0);
	return 0;
}

static PyObject *data_get_status(PyObject *self, void *unused)
{
	struct xs_dataring *r = data_of(self);

	(void)unused;
	return r ? PyLong_FromUnsignedLong(xs_load_acquire(&r->page->status)) : NULL;
}

static int data_set_status(PyObject *self, PyObject *value, void *unused)
{
	struct xs_dataring *r = data_of(self);
	unsigned long status;

	(void)unused;
	if (!r)
		return -1;
	if (r->role != XS_BACK || !value) {
		PyErr_SetString(PyExc_AttributeError, "the status is the backend's to set");
		return -1;
	}
	status = PyLong_AsUnsignedLong(value);
	if (PyErr_Occurred())
		return -1;
	if (status > UINT32_MAX) {
		PyErr_SetString(PyExc_ValueError, "a status is a u32");
		return -1;
	}
	xs_store_release(&r->page->status, (uint32_t)status);
	return 0;
}

static PyMethodDef data_methods[] = {
	{"peek", data_peek, METH_O, "peek(max) -> bytes, which stay in the ring"},
	{"read", data_read, METH_O, "read(max) -> (bytes, notify)"},
	{"write", data_write, METH_O, "write(data) -> (written, notify)"},
	{"arm_read", data_arm_read, METH_NOARGS, "arm_read() -> whether something is there already"},
	{"arm_write", (PyCFunction)(void (*)(void))data_arm_write, METH_VARARGS | METH_KEYWORDS,
	 "arm_write(wanted=1) -> whether there is that much room already"},
	{"close", data_close, METH_NOARGS, "close(): let go of the pages"},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef data_getset[] = {
	{"size", data_size, NULL, "bytes of one half", NULL},
	{"readable", data_readable, NULL, "bytes that can be read", NULL},
	{"room", data_room, NULL, "bytes that can be written", NULL},
	{"read_error", data_read_error, NULL, "in_error once everything before it was read, else 0", NULL},
	{"in_error", data_get_error, data_set_error, "0 or a negated errno", NULL},
	{"out_error", data_get_error, data_set_error, "0 or a negated errno", (void *)1},
	{"status", data_get_status, data_set_status, "1 once connected (async-connect)", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot data_slots_[] = {
	{Py_tp_doc, "DataRing(indexes, data, role, events=False, initialise=False): one side of a data ring"},
	{Py_tp_new, PyType_GenericNew},
	{Py_tp_init, data_init},
	{Py_tp_dealloc, data_dealloc},
	{Py_tp_methods, data_methods},
	{Py_tp_getset, data_getset},
	{0, NULL},
};

PyType_Spec xs_dataring_spec = {"xensock._core.DataRing", sizeof(struct data), 0, Py_TPFLAGS_DEFAULT, data_slots_};

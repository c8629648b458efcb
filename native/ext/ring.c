/* xensock._core: command rings (core/cmdring.h), and the three ring types as a part of the module. */
#include "ring.h"

#include "../core/cmdring.h"

static PyObject *ring_error;

struct front {
	PyObject_HEAD
	Py_buffer pages;
	struct xs_cmdfront ring;
};

struct back {
	PyObject_HEAD
	Py_buffer pages;
	struct xs_cmdback ring;
};

/* A slot out of a bytes-like object of at least `least` and at most 64 bytes. */
static int slot_of(PyObject *object, size_t least, uint8_t slot[XS_SLOT])
{
	Py_buffer view;

	if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE))
		return -1;
	if (view.len > (Py_ssize_t)XS_SLOT || view.len < (Py_ssize_t)least) {
		PyErr_Format(PyExc_ValueError, "a slot has 64 bytes, not %zd", view.len);
		PyBuffer_Release(&view);
		return -1;
	}
	memset(slot, 0, XS_SLOT);
	memcpy(slot, view.buf, (size_t)view.len);
	PyBuffer_Release(&view);
	return 0;
}

/* FrontRing */

static PyObject *front_close(PyObject *self, PyObject *none)
{
	(void)none;
	PyBuffer_Release(&((struct front *)self)->pages);
	Py_RETURN_NONE;
}

static int front_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"page", "initialise", NULL};
	struct front *f = (struct front *)self;
	int initialise = 0;

	PyBuffer_Release(&f->pages);
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*|p:FrontRing", names, &f->pages, &initialise))
		return -1;
	if ((initialise && xs_cmdring_clear(f->pages.buf, (size_t)f->pages.len)) ||
	    xs_cmdfront_init(&f->ring, f->pages.buf, (size_t)f->pages.len)) {
		no_ring("command pages", (size_t)f->pages.len);
		PyBuffer_Release(&f->pages);
		return -1;
	}
	return 0;
}

static void front_dealloc(PyObject *self)
{
	PyBuffer_Release(&((struct front *)self)->pages);
	free_object(self);
}

static struct xs_cmdfront *front_of(PyObject *self)
{
	struct front *f = (struct front *)self;

	return is_open(&f->pages) ? &f->ring : NULL;
}

static PyObject *front_slots(PyObject *self, void *unused)
{
	struct xs_cmdfront *f = front_of(self);

	(void)unused;
	return f ? PyLong_FromUnsignedLong(f->slots) : NULL;
}

static PyObject *front_free(PyObject *self, void *unused)
{
	struct xs_cmdfront *f = front_of(self);

	(void)unused;
	return f ? PyLong_FromUnsignedLong(xs_cmdfront_free(f)) : NULL;
}

static PyObject *front_push(PyObject *self, PyObject *request)
{
	struct xs_cmdfront *f = front_of(self);
	uint8_t slot[XS_SLOT];

	if (!f || slot_of(request, XS_SLOT, slot))
		return NULL;
	if (!xs_cmdfront_free(f)) {
		PyErr_SetString(PyExc_BlockingIOError, "the command ring is full");
		return NULL;
	}
	xs_cmdfront_put(f, slot);
	return PyBool_FromLong(xs_cmdfront_push(f));
}

static PyObject *front_pop(PyObject *self, PyObject *none)
{
	struct xs_cmdfront *f = front_of(self);
	char slot[XS_SLOT];

	(void)none;
	if (!f)
		return NULL;
	switch (xs_cmdfront_pop(f, slot)) {
	case 1:
		return PyBytes_FromStringAndSize(slot, XS_SLOT);
	case 0:
		Py_RETURN_NONE;
	default:
		PyErr_SetString(ring_error, "the backend claims more responses than there were requests");
		return NULL;
	}
}

static PyObject *front_arm(PyObject *self, PyObject *none)
{
	struct xs_cmdfront *f = front_of(self);

	(void)none;
	return f ? PyBool_FromLong(xs_cmdfront_arm(f)) : NULL;
}

static PyMethodDef front_methods[] = {
	{"push", front_push, METH_O, "push(slot) -> notify"},
	{"pop", front_pop, METH_NOARGS, "pop() -> slot or None"},
	{"arm", front_arm, METH_NOARGS, "arm() -> whether something is there already"},
	{"close", front_close, METH_NOARGS, "close(): let go of the pages"},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef front_getset[] = {
	{"slots", front_slots, NULL, "slots of the ring", NULL},
	{"free", front_free, NULL, "requests that can be pushed now", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot front_slots_[] = {
	{Py_tp_doc, "FrontRing(page, initialise=False): the frontend's end of a command ring"},
	{Py_tp_new, PyType_GenericNew},
	{Py_tp_init, front_init},
	{Py_tp_dealloc, front_dealloc},
	{Py_tp_methods, front_methods},
	{Py_tp_getset, front_getset},
	{0, NULL},
};

/* BackRing */

static PyObject *back_close(PyObject *self, PyObject *none)
{
	(void)none;
	PyBuffer_Release(&((struct back *)self)->pages);
	Py_RETURN_NONE;
}

static int back_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"page", "taken", "answered", NULL};
	struct back *b = (struct back *)self;
	PyObject *taken = Py_None;
	unsigned long answered = 0;

	PyBuffer_Release(&b->pages);
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*|Ok:BackRing", names, &b->pages, &taken, &answered))
		return -1;
	if (xs_cmdback_init(&b->ring, b->pages.buf, (size_t)b->pages.len)) {
		no_ring("command pages", (size_t)b->pages.len);
		PyBuffer_Release(&b->pages);
		return -1;
	}
	if (taken != Py_None) {
		b->ring.req_cons = (uint32_t)PyLong_AsUnsignedLongMask(taken);
		b->ring.rsp_prod = b->ring.told = (uint32_t)answered;
		if (PyErr_Occurred()) {
			PyBuffer_Release(&b->pages);
			return -1;
		}
		/* What is taken and not answered has its slots for the answers: else there would be no limit. */
		if (b->ring.req_cons - b->ring.rsp_prod > b->ring.slots) {
			PyBuffer_Release(&b->pages);
			PyErr_SetString(PyExc_ValueError, "more requests without a response than the ring has slots");
			return -1;
		}
	}
	return 0;
}

static void back_dealloc(PyObject *self)
{
	PyBuffer_Release(&((struct back *)self)->pages);
	free_object(self);
}

static struct xs_cmdback *back_of(PyObject *self)
{
	struct back *b = (struct back *)self;

	return is_open(&b->pages) ? &b->ring : NULL;
}

static PyObject *back_slots(PyObject *self, void *unused)
{
	struct xs_cmdback *b = back_of(self);

	(void)unused;
	return b ? PyLong_FromUnsignedLong(b->slots) : NULL;
}

static PyObject *back_owed(PyObject *self, void *unused)
{
	struct xs_cmdback *b = back_of(self);

	(void)unused;
	return b ? PyLong_FromUnsignedLong(xs_cmdback_owed(b)) : NULL;
}

static PyObject *back_taken(PyObject *self, void *unused)
{
	struct xs_cmdback *b = back_of(self);

	(void)unused;
	return b ? PyLong_FromUnsignedLong(b->req_cons) : NULL;
}

static PyObject *back_answered(PyObject *self, void *unused)
{
	struct xs_cmdback *b = back_of(self);

	(void)unused;
	return b ? PyLong_FromUnsignedLong(b->rsp_prod) : NULL;
}

static PyObject *back_shown(PyObject *self, void *unused)
{
	struct xs_cmdback *b = back_of(self);

	(void)unused;
	return b ? PyLong_FromUnsignedLong(xs_load_acquire(&b->page->rsp_prod)) : NULL;
}

static PyObject *back_take(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"limit", NULL};
	struct xs_cmdback *b = back_of(self);
	Py_ssize_t limit = PY_SSIZE_T_MAX;
	char slot[XS_SLOT];
	PyObject *list;
	int got = 0;

	if (!b || !PyArg_ParseTupleAndKeywords(args, kwargs, "|n:take", names, &limit))
		return NULL;
	list = PyList_New(0);
	while (list && limit-- > 0 && (got = xs_cmdback_take(b, slot)) > 0) {
		PyObject *item = PyBytes_FromStringAndSize(slot, XS_SLOT);

		if (!item || PyList_Append(list, item))
			Py_CLEAR(list);
		Py_XDECREF(item);
	}
	/* What was taken before the impossible claim goes with it: the other side cannot be trusted any more. */
	if (list && got < 0) {
		Py_CLEAR(list);
		PyErr_SetString(ring_error, "req_prod is impossible: more requests than the ring has slots");
	}
	return list;
}

static PyObject *back_answer(PyObject *self, PyObject *response)
{
	struct xs_cmdback *b = back_of(self);
	uint8_t slot[XS_SLOT];

	if (!b || slot_of(response, 0, slot))
		return NULL;
	if (!xs_cmdback_owed(b)) {
		PyErr_SetString(PyExc_ValueError, "no request is without its response");
		return NULL;
	}
	xs_cmdback_put(b, slot);
	return PyBool_FromLong(xs_cmdback_push(b));
}

static PyObject *back_arm(PyObject *self, PyObject *none)
{
	struct xs_cmdback *b = back_of(self);

	(void)none;
	return b ? PyBool_FromLong(xs_cmdback_arm(b)) : NULL;
}

static PyMethodDef back_methods[] = {
	{"take", (PyCFunction)(void (*)(void))back_take, METH_VARARGS | METH_KEYWORDS, "take(limit) -> slots"},
	{"answer", back_answer, METH_O, "answer(slot) -> notify"},
	{"arm", back_arm, METH_NOARGS, "arm() -> whether something is there already"},
	{"close", back_close, METH_NOARGS, "close(): let go of the pages"},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef back_getset[] = {
	{"slots", back_slots, NULL, "slots of the ring", NULL},
	{"owed", back_owed, NULL, "requests taken and not answered", NULL},
	{"taken", back_taken, NULL, "index behind the last request taken", NULL},
	{"answered", back_answered, NULL, "index behind the last response put", NULL},
	{"shown", back_shown, NULL, "the same, as the page has it", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot back_slots_[] = {
	{Py_tp_doc, "BackRing(page): the backend's end of a command ring"},
	{Py_tp_new, PyType_GenericNew},
	{Py_tp_init, back_init},
	{Py_tp_dealloc, back_dealloc},
	{Py_tp_methods, back_methods},
	{Py_tp_getset, back_getset},
	{0, NULL},
};

static PyType_Spec front_spec = {"xensock._core.FrontRing", sizeof(struct front), 0, Py_TPFLAGS_DEFAULT, front_slots_};
static PyType_Spec back_spec = {"xensock._core.BackRing", sizeof(struct back), 0, Py_TPFLAGS_DEFAULT, back_slots_};

int xs_ext_add_ring(PyObject *module)
{
	PyType_Spec *specs[] = {&front_spec, &back_spec, &xs_dataring_spec};

	ring_error = PyErr_NewExceptionWithDoc("xensock._core.RingError", "The other side broke the rules of the ring.",
					       PyExc_ValueError, NULL);
	if (!ring_error || PyModule_AddObjectRef(module, "RingError", ring_error))
		return -1;
	for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
		PyObject *type = PyType_FromModuleAndSpec(module, specs[i], NULL);
		int failed = !type || PyModule_AddType(module, (PyTypeObject *)type);

		Py_XDECREF(type);
		if (failed)
			return -1;
	}
	return 0;
}

/* xensock._core: a guest's pages as a buffer (core/pagemap.h). */
#include "ext.h"

#include "../core/pagemap.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <structmember.h>

struct pagemap {
	PyObject_HEAD
	PyObject *weak;
	void *address;
	size_t pages;
};

static PyTypeObject *type;

static int get_buffer(PyObject *self, Py_buffer *view, int flags)
{
	struct pagemap *p = (struct pagemap *)self;

	return PyBuffer_FillInfo(view, self, p->address, (Py_ssize_t)(p->pages * XS_GRANT_PAGE), 0, flags);
}

/* Every view of the memory holds the object: when it goes, nobody looks at the pages. */
static void dealloc(PyObject *self)
{
	struct pagemap *p = (struct pagemap *)self;
	PyTypeObject *own = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(own, Py_tp_free);

	/* First the pages, then those who wait for them to be gone. */
	if (p->address)
		xs_pages_unmap(p->address, p->pages);
	p->address = NULL;
	if (p->weak)
		PyObject_ClearWeakRefs(self);
	release(self);
	Py_DECREF(own);
}

/* Fills the runs from (fd, first, pages) tuples; their pages together, 0 with an exception set. */
static size_t take_runs(PyObject *list, struct xs_page_run *runs, Py_ssize_t count)
{
	size_t total = 0;

	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *item = PyList_GetItem(list, i);
		unsigned long long first;
		Py_ssize_t pages;

		if (!item || !PyArg_ParseTuple(item, "iKn;runs are (fd, first page, pages)", &runs[i].fd, &first, &pages))
			return 0;
		if (pages <= 0 || first >= (1ull << 40) || (size_t)pages >= (1ull << 40) - total) {
			PyErr_SetString(PyExc_ValueError, "a run of no page, or of too many");
			return 0;
		}
		runs[i].first = first;
		runs[i].pages = (size_t)pages;
		total += (size_t)pages;
	}
	if (!total)
		PyErr_SetString(PyExc_ValueError, "no pages to map");
	return total;
}

static PyObject *map_pages(PyObject *self, PyObject *list)
{
	struct xs_page_run *runs;
	struct pagemap *p;
	Py_ssize_t count;
	size_t total;

	(void)self;
	if (!PyList_Check(list)) {
		PyErr_SetString(PyExc_TypeError, "map_pages() takes a list of runs");
		return NULL;
	}
	count = PyList_Size(list);
	runs = calloc(count ? (size_t)count : 1, sizeof *runs);
	if (!runs)
		return PyErr_NoMemory();
	total = take_runs(list, runs, count);
	p = total ? PyObject_New(struct pagemap, type) : NULL;
	if (p) {
		p->weak = NULL;
		p->pages = total;
		p->address = xs_pages_map(runs, (size_t)count, total);
		if (!p->address) {
			PyErr_SetFromErrno(PyExc_OSError);
			Py_DECREF(p);
			p = NULL;
		}
	}
	free(runs);
	return (PyObject *)p;
}

static PyObject *region_fault(PyObject *self, PyObject *args)
{
	unsigned long long pages;
	const char *fault;
	int fd;

	(void)self;
	if (!PyArg_ParseTuple(args, "iK:region_fault", &fd, &pages))
		return NULL;
	fault = xs_region_fault(fd, pages);
	return PyUnicode_FromString(fault ? fault : "");
}

static PyObject *own(PyObject *self, PyObject *none)
{
	struct pagemap *p = (struct pagemap *)self;

	(void)none;
	errno = xs_pages_own(p->address, p->pages);
	if (errno)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyMethodDef own_methods[] = {
	{"own", own, METH_NOARGS, "own(): processes that are made from now on do not have these pages mapped"},
	{NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
	{"__weaklistoffset__", T_PYSSIZET, offsetof(struct pagemap, weak), READONLY, NULL},
	{NULL, 0, 0, 0, NULL},
};

static PyType_Slot type_slots[] = {
	{Py_tp_doc, "Mapped pages, writable; unmapped when the last view is gone"},
	{Py_tp_dealloc, dealloc},
	{Py_tp_members, members},
	{Py_tp_methods, own_methods},
	{Py_bf_getbuffer, get_buffer},
	{0, NULL},
};

static PyType_Spec spec = {"xensock._core.PageMap", sizeof(struct pagemap), 0,
			   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, type_slots};

static PyMethodDef methods[] = {
	{"map_pages", map_pages, METH_O, "map_pages([(fd, first page, pages)]) -> PageMap, a writable buffer"},
	{"region_fault", region_fault, METH_VARARGS, "region_fault(fd, pages) -> why it cannot be mapped safely, or ''"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_pagemap(PyObject *module)
{
	type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
	if (!type || PyModule_AddType(module, type))
		return -1;
	return PyModule_AddFunctions(module, methods);
}

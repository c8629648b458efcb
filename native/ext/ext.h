/* Parts of the module xensock._core; each adds its functions, 0 or -1 with an exception set. */
#ifndef XS_EXT_H
#define XS_EXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../core/super.h"

#define XS_RUN 128 /* events at once */

/* Connects that the core finished, one after the other (super_next): what lines of the audit log are made of. */
struct xs_run {
	int n, nsamples, ntids;
	int sample[XS_RUN], tid[XS_RUN]; /* of each event: which of the samples has its kind, which of the tids is its caller's */
	uint32_t tids[XS_RUN];
	struct xs_event ev[XS_RUN];
};
#define XS_RUN_NAME "xensock.run"

/* An event as Python has it. */
PyObject *xs_ext_event(const struct xs_event *e);

int xs_ext_add_super(PyObject *module);
int xs_ext_add_mover(PyObject *module);
int xs_ext_add_ring(PyObject *module);
int xs_ext_add_pagemap(PyObject *module);
int xs_ext_add_udp(PyObject *module);
int xs_ext_add_unix(PyObject *module);
int xs_ext_add_evbridge(PyObject *module);
int xs_ext_add_ledger(PyObject *module);
int xs_ext_add_endring(PyObject *module);
int xs_ext_add_keeper(PyObject *module);

#endif

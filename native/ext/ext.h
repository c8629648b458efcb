/* Parts of the module xensock._core; each adds its functions, 0 or -1 with an exception set. */
#ifndef XS_EXT_H
#define XS_EXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int xs_ext_add_super(PyObject *module);
int xs_ext_add_mover(PyObject *module);
int xs_ext_add_ring(PyObject *module);
int xs_ext_add_pagemap(PyObject *module);
int xs_ext_add_udp(PyObject *module);
int xs_ext_add_unix(PyObject *module);
int xs_ext_add_evbridge(PyObject *module);

#endif

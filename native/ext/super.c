/* Functions over one supervisor, which travels as a capsule. The caller stops it before the last reference goes. */
#include "ext.h"

#include "../core/interrupt.h"
#include "../core/super.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NAME "xensock.super"

static struct xs_super *get(PyObject *capsule) { return PyCapsule_GetPointer(capsule, NAME); }

static void drop(PyObject *capsule)
{
	struct xs_super *s = get(capsule);

	if (s)
		xs_super_free(s);
	else
		PyErr_Clear();
}

static PyObject *start(PyObject *self, PyObject *args)
{
	int fd, record, killable, journal = -1, error;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "ipp|i:super_start", &fd, &record, &killable, &journal))
		return NULL;
	s = xs_super_resume(fd, record != 0, killable != 0, journal, &error);
	if (!s) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return PyCapsule_New(s, NAME, drop);
}

static PyObject *limit(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned sockets, connects, calls;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "OIII:super_limit", &capsule, &sockets, &connects, &calls) || !(s = get(capsule)))
		return NULL;
	xs_super_limit(s, sockets, connects, calls);
	Py_RETURN_NONE;
}

static PyObject *room(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned sockets;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "OI:super_room", &capsule, &sockets) || !(s = get(capsule)))
		return NULL;
	xs_super_room(s, sockets);
	Py_RETURN_NONE;
}

static PyObject *stop(PyObject *self, PyObject *arg)
{
	struct xs_super *s = get(arg);

	(void)self;
	if (!s)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	xs_super_stop(s);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

PyObject *xs_ext_event(const struct xs_event *e)
{
	return Py_BuildValue("(iKIi(KKKKKK)iiiiy#IiKKy)", (int)e->kind, (unsigned long long)e->id, e->tid, e->nr,
			     (unsigned long long)e->args[0], (unsigned long long)e->args[1], (unsigned long long)e->args[2],
			     (unsigned long long)e->args[3], (unsigned long long)e->args[4], (unsigned long long)e->args[5], e->fd, e->domain,
			     e->type, (int)e->host, (const char *)e->addr, (Py_ssize_t)e->addrlen, e->verdict, e->error,
			     (unsigned long long)e->start_ns, (unsigned long long)e->took_ns, e->program);
}

static void drop_run(PyObject *capsule) { free(PyCapsule_GetPointer(capsule, XS_RUN_NAME)); }

static bool alike(const struct xs_event *a, const struct xs_event *b)
{
	return a->verdict == b->verdict && a->error == b->error && a->addrlen == b->addrlen &&
	       !memcmp(a->addr, b->addr, a->addrlen) && !strcmp(a->program, b->program);
}

/* (capsule, samples, tids): see _core.pyi. */
static PyObject *run_of(const struct xs_event *ev, int n)
{
	struct xs_run *r = malloc(sizeof *r);
	PyObject *capsule, *samples = PyList_New(0), *tids = PyList_New(0);
	int first[XS_RUN];

	capsule = r ? PyCapsule_New(r, XS_RUN_NAME, drop_run) : PyErr_NoMemory();
	if (!capsule || !samples || !tids) {
		if (!capsule)
			free(r);
		goto failed;
	}
	r->n = n;
	r->nsamples = r->ntids = 0;
	memcpy(r->ev, ev, (size_t)n * sizeof *ev);
	for (int i = 0, k; i < n; i++) {
		PyObject *made = NULL;

		for (k = 0; k < r->nsamples && !alike(&ev[first[k]], &ev[i]); k++)
			;
		r->sample[i] = k;
		if (k == r->nsamples) {
			first[r->nsamples++] = i;
			made = xs_ext_event(&ev[i]);
			if (!made || PyList_Append(samples, made)) {
				Py_XDECREF(made);
				goto failed;
			}
			Py_DECREF(made);
		}
		for (k = 0; k < r->ntids && r->tids[k] != ev[i].tid; k++)
			;
		r->tid[i] = k;
		if (k == r->ntids) {
			r->tids[r->ntids++] = ev[i].tid;
			made = PyLong_FromUnsignedLong(ev[i].tid);
			if (!made || PyList_Append(tids, made)) {
				Py_XDECREF(made);
				goto failed;
			}
			Py_DECREF(made);
		}
	}
	return Py_BuildValue("(NNN)", capsule, samples, tids);
failed:
	Py_XDECREF(capsule);
	Py_XDECREF(samples);
	Py_XDECREF(tids);
	return NULL;
}

static PyObject *next(PyObject *self, PyObject *args)
{
	PyObject *capsule, *list;
	int timeout, n;
	struct xs_super *s;
	struct xs_event ev[XS_RUN];

	(void)self;
	if (!PyArg_ParseTuple(args, "Oi:super_next", &capsule, &timeout) || !(s = get(capsule)))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	n = xs_super_next(s, ev, XS_RUN, timeout);
	Py_END_ALLOW_THREADS
	if (n < 0)
		Py_RETURN_NONE;
	list = PyList_New(0);
	for (int i = 0, end; list && i < n; i = end) {
		PyObject *made;

		for (end = i; end < n && ev[end].kind == XS_DONE; end++)
			;
		made = end > i ? run_of(ev + i, end - i) : xs_ext_event(&ev[i]);
		if (end == i)
			end++;
		if (!made || PyList_Append(list, made))
			Py_CLEAR(list);
		Py_XDECREF(made);
	}
	return list;
}

static PyObject *events(PyObject *self, PyObject *arg)
{
	const struct xs_run *r = PyCapsule_GetPointer(arg, XS_RUN_NAME);
	PyObject *list = r ? PyList_New(r->n) : NULL;

	(void)self;
	for (int i = 0; list && i < r->n; i++) {
		PyObject *made = xs_ext_event(&r->ev[i]);

		if (!made)
			Py_CLEAR(list);
		else
			PyList_SetItem(list, i, made);
	}
	return list;
}

static PyObject *answer(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long id;
	long long val;
	int error, go_on;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "OKLip:super_answer", &capsule, &id, &val, &error, &go_on) || !(s = get(capsule)))
		return NULL;
	return PyLong_FromLong(xs_super_answer(s, id, val, error, go_on != 0));
}

static PyObject *valid(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long id;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "OK:super_valid", &capsule, &id) || !(s = get(capsule)))
		return NULL;
	return PyBool_FromLong(xs_super_valid(s, id));
}

static PyObject *addfd(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long id;
	int src, number, r;
	unsigned flags;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "OKiiI:super_addfd", &capsule, &id, &src, &number, &flags) || !(s = get(capsule)))
		return NULL;
	/* The caller puts it into place itself, as soon as it gets a processor (SECCOMP_IOCTL_NOTIF_ADDFD). */
	Py_BEGIN_ALLOW_THREADS
	r = xs_super_addfd(s, id, src, number, flags);
	Py_END_ALLOW_THREADS
	return PyLong_FromLong(r);
}

/* Common to connect and await, which has no `cache` and no `begun`: both take fd over. */
struct run {
	PyObject *capsule;
	unsigned long long id, start;
	unsigned tid, verdict;
	int fd, cache, begun;
	Py_buffer addr;
	struct xs_super *s;
};

static int parse_run(PyObject *args, struct run *r)
{
	r->cache = r->begun = 0;
	if (!PyArg_ParseTuple(args, "OKIiy*IK|pp", &r->capsule, &r->id, &r->tid, &r->fd, &r->addr, &r->verdict, &r->start, &r->cache,
			      &r->begun))
		return -1;
	r->s = get(r->capsule);
	if (!r->s || r->addr.len > 128) {
		if (r->s)
			PyErr_SetString(PyExc_ValueError, "sockaddr longer than 128 bytes");
		PyBuffer_Release(&r->addr);
		return -1;
	}
	return 0;
}

static PyObject *do_connect(PyObject *self, PyObject *args)
{
	struct run r;

	(void)self;
	if (parse_run(args, &r))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	xs_super_connect(r.s, r.id, r.tid, r.fd, r.addr.buf, (uint32_t)r.addr.len, r.verdict, r.start, r.cache != 0,
			 r.begun != 0);
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&r.addr);
	Py_RETURN_NONE;
}

static PyObject *do_await(PyObject *self, PyObject *args)
{
	struct run r;

	(void)self;
	if (parse_run(args, &r))
		return NULL;
	xs_super_await(r.s, r.id, r.tid, r.fd, r.addr.buf, (uint32_t)r.addr.len, r.verdict, r.start);
	PyBuffer_Release(&r.addr);
	Py_RETURN_NONE;
}

static PyObject *refuse(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	Py_buffer addr;
	unsigned verdict;
	int error;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "Oy*Ii:super_refuse", &capsule, &addr, &verdict, &error))
		return NULL;
	s = get(capsule);
	if (s)
		xs_super_refuse(s, addr.buf, (uint32_t)addr.len, verdict, error);
	PyBuffer_Release(&addr);
	if (!s)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *flush(PyObject *self, PyObject *arg)
{
	struct xs_super *s = get(arg);

	(void)self;
	if (!s)
		return NULL;
	xs_super_flush(s);
	Py_RETURN_NONE;
}

static PyObject *record(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	int on;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "Op:super_record", &capsule, &on) || !(s = get(capsule)))
		return NULL;
	xs_super_record(s, on != 0);
	Py_RETURN_NONE;
}

static PyObject *getfd(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned tid;
	int fd, r;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "OIi:super_getfd", &capsule, &tid, &fd) || !(s = get(capsule)))
		return NULL;
	r = xs_super_getfd(s, tid, fd);
	if (r < 0) {
		errno = -r;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return PyLong_FromLong(r);
}

static PyObject *keep(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long cookie;
	int nr, error;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "OKii:super_keep", &capsule, &cookie, &nr, &error) || !(s = get(capsule)))
		return NULL;
	xs_super_keep(s, cookie, nr, error);
	Py_RETURN_NONE;
}

static PyObject *born(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long cookie;
	uint32_t tid;
	uint64_t boot_ns;
	struct xs_super *s;

	(void)self;
	if (!PyArg_ParseTuple(args, "OK:super_born", &capsule, &cookie) || !(s = get(capsule)))
		return NULL;
	if (!xs_super_born(s, cookie, &tid, &boot_ns))
		Py_RETURN_NONE;
	return Py_BuildValue("(IK)", tid, (unsigned long long)boot_ns);
}

/* The caller is to look for signals as its call ends (interrupt.h). */
static PyObject *interrupt(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long id;
	unsigned tid;
	struct xs_super *s;
	bool nudged;
	int r;

	(void)self;
	if (!PyArg_ParseTuple(args, "OKI:super_interrupt", &capsule, &id, &tid) || !(s = get(capsule)))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	nudged = xs_nudge(tid);
	r = xs_super_answer(s, id, 0, nudged ? XS_ERESTARTSYS : EINTR, false);
	if (nudged)
		xs_nudged(tid);
	Py_END_ALLOW_THREADS
	return PyLong_FromLong(r);
}

static PyMethodDef methods[] = {
	{"super_start", start, METH_VARARGS, "super_start(notify_fd, record, killable, journal_fd) -> handle; takes the first over"},
	{"super_limit", limit, METH_VARARGS, "super_limit(handle, sockets, connects, calls a second): see native/core/super.h"},
	{"super_room", room, METH_VARARGS, "super_room(handle, sockets): so many more may be handed out"},
	{"super_stop", stop, METH_O, "super_stop(handle): ends the threads"},
	{"super_next", next, METH_VARARGS, "super_next(handle, timeout_ms) -> events, or None when the guest is gone"},
	{"run_events", events, METH_O, "run_events(run) -> its events"},
	{"super_answer", answer, METH_VARARGS, "super_answer(handle, id, value, errno, go_on) -> errno (ENOENT: interrupted)"},
	{"super_valid", valid, METH_VARARGS, "super_valid(handle, id) -> whether the caller still waits"},
	{"super_addfd", addfd, METH_VARARGS, "super_addfd(handle, id, srcfd, number, -1 or -2, flags) -> number or -errno"},
	{"super_connect", do_connect, METH_VARARGS, "super_connect(handle, id, tid, fd, sockaddr, verdict, start_ns, cache, begun)"},
	{"super_await", do_await, METH_VARARGS, "super_await(handle, id, tid, fd, sockaddr, verdict, start_ns)"},
	{"super_refuse", refuse, METH_VARARGS, "super_refuse(handle, sockaddr, verdict, errno)"},
	{"super_flush", flush, METH_O, "super_flush(handle): forget cached verdicts"},
	{"super_record", record, METH_VARARGS, "super_record(handle, on): whether the core's own connects are told"},
	{"super_getfd", getfd, METH_VARARGS, "super_getfd(handle, tid, fd) -> duplicate of a guest's descriptor"},
	{"super_interrupt", interrupt, METH_VARARGS, "super_interrupt(handle, id, tid) -> errno: end a call for a signal"},
	{"super_keep", keep, METH_VARARGS, "super_keep(handle, cookie, nr, errno): outcome for a re-issued call"},
	{"super_born", born, METH_VARARGS, "super_born(handle, cookie) -> (tid, CLOCK_BOOTTIME in ns) or None"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_super(PyObject *module) { return PyModule_AddFunctions(module, methods); }

/* Functions over a ledger, which travels as a capsule; the interpreter's lock keeps it to one thread at a time. */
#include "ext.h"

#include "../core/ledger.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define NAME "xensock.ledger"
#define AT_ONCE 64
#define TURNS 4	     /* of AT_ONCE messages at most, for one fetch */
#define LARGEST 1024 /* bytes of a message; they have some 500 */

static struct xs_ledger *get(PyObject *capsule) { return PyCapsule_GetPointer(capsule, NAME); }

static void drop(PyObject *capsule) { xs_ledger_free(get(capsule)); }

static PyObject *make(PyObject *self, PyObject *none)
{
	struct xs_ledger *l = xs_ledger_new();

	(void)self;
	(void)none;
	return l ? PyCapsule_New(l, NAME, drop) : PyErr_NoMemory();
}

static PyObject *kind(PyObject *self, PyObject *args)
{
	PyObject *capsule, *list;
	struct xs_text parts[XS_PARTS];
	struct xs_ledger *l;
	uint32_t number;

	(void)self;
	if (!PyArg_ParseTuple(args, "OO:ledger_kind", &capsule, &list) || !(l = get(capsule)))
		return NULL;
	if (!PyList_Check(list) || PyList_Size(list) != XS_PARTS) {
		PyErr_SetString(PyExc_ValueError, "a kind has parts of a call's line and of an end's");
		return NULL;
	}
	for (int i = 0; i < XS_PARTS; i++) {
		char *at;
		Py_ssize_t size;

		if (PyBytes_AsStringAndSize(PyList_GetItem(list, i), &at, &size))
			return NULL;
		parts[i].at = at;
		parts[i].size = (size_t)size;
	}
	number = xs_ledger_kind(l, parts);
	return number == XS_NO_KIND ? PyErr_NoMemory() : PyLong_FromUnsignedLong(number);
}

static PyObject *with_kind(PyObject *args, void (*act)(struct xs_ledger *, uint32_t))
{
	PyObject *capsule;
	unsigned number;
	struct xs_ledger *l;

	if (!PyArg_ParseTuple(args, "OI", &capsule, &number) || !(l = get(capsule)))
		return NULL;
	act(l, number);
	Py_RETURN_NONE;
}

static PyObject *drop_kind(PyObject *self, PyObject *args)
{
	(void)self;
	return with_kind(args, xs_ledger_drop);
}

static PyObject *done(PyObject *self, PyObject *args)
{
	(void)self;
	return with_kind(args, xs_ledger_done);
}

static PyObject *number_or_none(bool known, uint64_t value)
{
	if (known)
		return PyLong_FromUnsignedLongLong(value);
	Py_RETURN_NONE;
}

static PyObject *counts(const struct xs_counts *c)
{
	return Py_BuildValue("(NNiK)", number_or_none(c->counted, c->sent), number_or_none(c->counted, c->received), c->error,
			     (unsigned long long)c->ended_ns);
}

/* (kind, cookie, time_ns, tid, user); kind None: somebody else's. */
static PyObject *begun(const struct xs_begun *b)
{
	return Py_BuildValue("(NKKIL)", number_or_none(b->kind != XS_NO_KIND, b->kind), (unsigned long long)b->cookie,
			     (unsigned long long)b->time_ns, b->tid, (long long)b->user);
}

static PyObject *begin(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long cookie, time_ns;
	Py_ssize_t most;
	struct xs_ledger *l;
	struct xs_begun b;
	struct xs_counts c;
	size_t live;

	(void)self;
	if (!PyArg_ParseTuple(args, "OKKn:ledger_begin", &capsule, &cookie, &time_ns, &most) || !(l = get(capsule)))
		return NULL;
	memset(&b, 0, sizeof b);
	b.cookie = cookie;
	b.time_ns = time_ns;
	b.kind = XS_NO_KIND;
	live = xs_ledger_live(l);
	if (xs_ledger_begin(l, &b, (size_t)most, &c))
		return counts(&c);
	if (xs_ledger_live(l) == live)
		Py_RETURN_FALSE;
	Py_RETURN_NONE;
}

static PyObject *take(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned long long cookie;
	struct xs_ledger *l;
	struct xs_begun b;

	(void)self;
	if (!PyArg_ParseTuple(args, "OK:ledger_take", &capsule, &cookie) || !(l = get(capsule)))
		return NULL;
	if (!xs_ledger_take(l, cookie, &b))
		Py_RETURN_NONE;
	return begun(&b);
}

static PyObject *cookies(PyObject *self, PyObject *arg)
{
	struct xs_ledger *l = get(arg);
	PyObject *list = l ? PyList_New(0) : NULL;
	struct xs_begun b;
	size_t at = 0;

	(void)self;
	while (list && xs_ledger_each(l, &at, &b)) {
		PyObject *made = PyLong_FromUnsignedLongLong(b.cookie);

		if (!made || PyList_Append(list, made))
			Py_CLEAR(list);
		Py_XDECREF(made);
	}
	return list;
}

static PyObject *live(PyObject *self, PyObject *arg)
{
	struct xs_ledger *l = get(arg);

	(void)self;
	return l ? PyLong_FromSize_t(xs_ledger_live(l)) : NULL;
}

static PyObject *heed(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	unsigned short port;
	int on;
	struct xs_ledger *l;

	(void)self;
	if (!PyArg_ParseTuple(args, "OHp:ledger_heed", &capsule, &port, &on) || !(l = get(capsule)))
		return NULL;
	xs_ledger_heed(l, port, on != 0);
	Py_RETURN_NONE;
}

static PyObject *clear(PyObject *self, PyObject *arg)
{
	struct xs_ledger *l = get(arg);

	(void)self;
	if (!l)
		return NULL;
	xs_ledger_clear(l);
	Py_RETURN_NONE;
}

static PyObject *stranger(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	const char *at;
	unsigned long long epoch_ns;
	Py_ssize_t size;
	struct xs_ledger *l;

	(void)self;
	if (!PyArg_ParseTuple(args, "Oy#K:ledger_stranger", &capsule, &at, &size, &epoch_ns) || !(l = get(capsule)))
		return NULL;
	xs_ledger_stranger(l, (const uint8_t *)at, (size_t)size, epoch_ns);
	Py_RETURN_NONE;
}

static PyObject *bytes_of(const struct xs_lines *out)
{
	return out->failed ? PyErr_NoMemory() : PyBytes_FromStringAndSize(out->at, (Py_ssize_t)out->used);
}

static PyObject *numbered(PyObject *self, PyObject *args)
{
	const char *lines, *head;
	Py_ssize_t size, headsize;
	unsigned long long first;
	PyObject *made;

	(void)self;
	if (!PyArg_ParseTuple(args, "y#y#K:lines_number", &lines, &size, &head, &headsize, &first))
		return NULL;
	made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)xs_lines_numbered(lines, (size_t)size, (size_t)headsize, first));
	if (made)
		xs_lines_number(PyBytes_AsString(made), lines, (size_t)size, head, (size_t)headsize, first);
	return made;
}

/* The number at `i` of a list; false: an exception, or it is None. */
static bool item(PyObject *list, int i, long long *value)
{
	PyObject *found = PyList_GetItem(list, i);

	if (!found || found == Py_None)
		return false;
	*value = PyLong_AsLongLong(found);
	return !PyErr_Occurred();
}

static bool call(struct xs_ledger *l, const struct xs_run *r, int i, PyObject *kinds, PyObject *users, uint64_t epoch_ns, uint64_t now_ns,
		 Py_ssize_t most, struct xs_lines *out)
{
	const struct xs_event *ev = &r->ev[i];
	long long number, user;
	struct xs_counts c;
	struct xs_begun b;

	if (!item(kinds, r->sample[i], &number) || !item(users, r->tid[i], &user))
		return false;
	xs_ledger_call(l, out, ev, (uint32_t)number, user, epoch_ns);
	memset(&b, 0, sizeof b);
	b.cookie = ev->args[0];
	b.time_ns = epoch_ns + ev->start_ns;
	b.kind = (uint32_t)number;
	b.tid = ev->tid;
	b.user = user;
	if (most && xs_ledger_begin(l, &b, (size_t)most, &c))
		xs_ledger_end(l, out, &b, &c, now_ns);
	return true;
}

static PyObject *calls(PyObject *self, PyObject *args)
{
	PyObject *capsule, *of, *kinds, *users, *rest, *lines;
	unsigned long long epoch_ns, now_ns;
	const struct xs_run *r;
	struct xs_lines out;
	struct xs_ledger *l;
	Py_ssize_t most;

	(void)self;
	if (!PyArg_ParseTuple(args, "OOOOKKn:ledger_calls", &capsule, &of, &kinds, &users, &epoch_ns, &now_ns, &most) ||
	    !(l = get(capsule)) || !(r = PyCapsule_GetPointer(of, XS_RUN_NAME)))
		return NULL;
	if (!PyList_Check(kinds) || !PyList_Check(users) || PyList_Size(kinds) != r->nsamples || PyList_Size(users) != r->ntids) {
		PyErr_SetString(PyExc_ValueError, "a run has a kind for each sample, and a user for each thread");
		return NULL;
	}
	out = xs_ledger_lines(l);
	rest = PyList_New(0);
	for (int i = 0; rest && i < r->n; i++) {
		PyObject *made;

		if (call(l, r, i, kinds, users, epoch_ns, now_ns, most, &out))
			continue;
		made = PyErr_Occurred() ? NULL : xs_ext_event(&r->ev[i]);
		if (!made || PyList_Append(rest, made))
			Py_CLEAR(rest);
		Py_XDECREF(made);
	}
	lines = rest ? bytes_of(&out) : NULL;
	xs_ledger_give(l, &out);
	if (!lines) {
		Py_XDECREF(rest);
		return NULL;
	}
	return Py_BuildValue("(NIN)", lines, out.count, rest);
}

struct heard {
	struct mmsghdr header[AT_ONCE];
	struct iovec at[AT_ONCE];
	uint8_t message[AT_ONCE][LARGEST];
};

static bool add(PyObject *list, PyObject *made)
{
	bool good = made && !PyList_Append(list, made);

	Py_XDECREF(made);
	return good;
}

/* Messages, sorted: lines of ends; ends whose beginnings have a kind, where no lines are wanted; what others are to see. */
struct sorted {
	bool as_lines;
	struct xs_lines out;
	PyObject *ends, *others;
};

static bool sort(struct xs_ledger *l, struct sorted *to, const uint8_t *message, size_t size, uint64_t epoch_ns, uint64_t now_ns)
{
	struct xs_counts c;
	struct xs_begun b;

	switch (xs_ledger_heard(l, message, size, epoch_ns, &b, &c)) {
	case XS_ABOUT_BEGUN:
		if (!to->as_lines)
			return add(to->ends, Py_BuildValue("(NN)", begun(&b), counts(&c)));
		xs_ledger_end(l, &to->out, &b, &c, now_ns);
		return true;
	case XS_ABOUT_OTHER:
		return add(to->others, PyBytes_FromStringAndSize((const char *)message, (Py_ssize_t)size));
	default:
		return true;
	}
}

static bool sort_into(struct sorted *to, struct xs_ledger *l, bool as_lines)
{
	to->as_lines = as_lines;
	to->out = xs_ledger_lines(l);
	to->ends = PyList_New(0);
	to->others = PyList_New(0);
	return to->ends && to->others;
}

/* What was sorted, which goes, behind whether there may be more and whether some were lost; unless not `good`. */
static PyObject *sorted(struct xs_ledger *l, struct sorted *from, bool good, bool more, bool lost)
{
	PyObject *lines = good ? bytes_of(&from->out) : NULL;

	xs_ledger_give(l, &from->out);
	if (lines)
		return Py_BuildValue("(NNNINN)", PyBool_FromLong(more), PyBool_FromLong(lost), lines, from->out.count, from->ends,
				     from->others);
	Py_XDECREF(from->ends);
	Py_XDECREF(from->others);
	return NULL;
}

/* Fetches up to AT_ONCE messages; how many, or -errno. */
static int fetch(int fd, struct heard *h)
{
	int n;

	for (int i = 0; i < AT_ONCE; i++) {
		h->at[i].iov_base = h->message[i];
		h->at[i].iov_len = LARGEST;
		memset(&h->header[i], 0, sizeof h->header[i]);
		h->header[i].msg_hdr.msg_iov = &h->at[i];
		h->header[i].msg_hdr.msg_iovlen = 1;
	}
	n = recvmmsg(fd, h->header, AT_ONCE, MSG_DONTWAIT, NULL);
	return n < 0 ? -errno : n;
}

static PyObject *hear(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	struct heard *h;
	unsigned long long now_ns;
	struct xs_ledger *l;
	struct sorted to;
	int fd, as_lines, n = AT_ONCE;
	bool good;

	(void)self;
	if (!PyArg_ParseTuple(args, "OiKp:ledger_hear", &capsule, &fd, &now_ns, &as_lines) || !(l = get(capsule)))
		return NULL;
	h = malloc(sizeof *h);
	good = sort_into(&to, l, as_lines != 0);
	if (good && !h) {
		PyErr_NoMemory();
		good = false;
	}
	for (int turn = 0; good && turn < TURNS && n == AT_ONCE; turn++) {
		Py_BEGIN_ALLOW_THREADS
		n = fetch(fd, h);
		Py_END_ALLOW_THREADS
		for (int i = 0; good && i < n; i++)
			good = sort(l, &to, h->message[i], h->header[i].msg_len, 0, now_ns);
	}
	free(h);
	if (good && n < 0 && n != -EAGAIN && n != -ENOBUFS) {
		errno = -n;
		PyErr_SetFromErrno(PyExc_OSError);
		good = false;
	}
	return sorted(l, &to, good, n == AT_ONCE || n == -ENOBUFS, n == -ENOBUFS);
}

/* As hear(), of messages that somebody else fetched, one behind the other. */
static PyObject *hear_of(PyObject *self, PyObject *args)
{
	PyObject *capsule;
	const char *messages;
	Py_ssize_t size;
	unsigned long long epoch_ns, now_ns;
	struct xs_ledger *l;
	struct sorted to;
	int as_lines;
	bool good;

	(void)self;
	if (!PyArg_ParseTuple(args, "Oy#KKp:ledger_hear_of", &capsule, &messages, &size, &epoch_ns, &now_ns, &as_lines) ||
	    !(l = get(capsule)))
		return NULL;
	good = sort_into(&to, l, as_lines != 0);
	for (uint32_t length; good && size >= (Py_ssize_t)sizeof length; messages += length, size -= length) {
		memcpy(&length, messages, sizeof length); /* nlmsg_len */
		if (length < sizeof length || length > size)
			break;
		good = sort(l, &to, (const uint8_t *)messages, length, epoch_ns, now_ns);
	}
	return sorted(l, &to, good, false, false);
}

static PyMethodDef methods[] = {
	{"ledger", make, METH_NOARGS, "ledger() -> handle"},
	{"ledger_kind", kind, METH_VARARGS, "ledger_kind(handle, parts) -> number"},
	{"ledger_drop", drop_kind, METH_VARARGS, "ledger_drop(handle, kind): no more calls are of it"},
	{"ledger_done", done, METH_VARARGS, "ledger_done(handle, kind): a connection that was told of is recorded"},
	{"ledger_calls", calls, METH_VARARGS, "ledger_calls(handle, run, kinds, users, epoch_ns, now_ns, most) -> lines, count, the rest"},
	{"ledger_begin", begin, METH_VARARGS, "ledger_begin(handle, cookie, time_ns, most) -> None; False: it is not heeded; or counts: it has ended"},
	{"ledger_hear", hear, METH_VARARGS, "ledger_hear(handle, fd, now_ns, as_lines) -> more, lost, lines, count, ends, others"},
	{"ledger_hear_of", hear_of, METH_VARARGS, "ledger_hear_of(handle, messages, epoch_ns, now_ns, as_lines): as ledger_hear()"},
	{"ledger_stranger", stranger, METH_VARARGS, "ledger_stranger(handle, message, epoch_ns)"},
	{"ledger_take", take, METH_VARARGS, "ledger_take(handle, cookie) -> a beginning, or None"},
	{"ledger_cookies", cookies, METH_O, "ledger_cookies(handle) -> of those under way"},
	{"ledger_live", live, METH_O, "ledger_live(handle) -> how many are under way"},
	{"ledger_heed", heed, METH_VARARGS, "ledger_heed(handle, port, on): messages about it are others'"},
	{"ledger_clear", clear, METH_O, "ledger_clear(handle): forget connections"},
	{"lines_number", numbered, METH_VARARGS, "lines_number(lines, head, first) -> bytes"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_ledger(PyObject *module) { return PyModule_AddFunctions(module, methods); }

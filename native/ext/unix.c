/* Unix sockets at paths: how a guest's path is resolved, and as whom the backend connects to what it leads to. */
#include "ext.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GROUPS 65536 /* NGROUPS_MAX */

/* The file that path leads to from dirfd, opened with O_PATH: with the directory as its root (in_root), or below it. No
 * link of /proc is followed: "self" there is us. */
static PyObject *open_within(PyObject *self, PyObject *args)
{
	int dirfd, in_root, fd;
	const char *path;
	struct open_how how;

	(void)self;
	if (!PyArg_ParseTuple(args, "iyp:open_within", &dirfd, &path, &in_root))
		return NULL;
	memset(&how, 0, sizeof how);
	how.flags = O_PATH | O_CLOEXEC;
	how.resolve = (in_root ? RESOLVE_IN_ROOT : RESOLVE_BENEATH) | RESOLVE_NO_MAGICLINKS;
	Py_BEGIN_ALLOW_THREADS
	fd = (int)syscall(SYS_openat2, dirfd, path, &how, sizeof how);
	Py_END_ALLOW_THREADS
	if (fd < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return PyLong_FromLong(fd);
}

/* libc would change every thread. The real and saved ids stay, so that the thread can be itself again. */
static int be(unsigned uid, unsigned gid, size_t ngroups, const gid_t *groups)
{
	if (syscall(SYS_setgroups, ngroups, groups) || syscall(SYS_setresgid, -1, gid, -1))
		return -1;
	return (int)syscall(SYS_setresuid, -1, uid, -1);
}

static PyObject *act_as(PyObject *self, PyObject *args)
{
	unsigned uid, gid;
	Py_buffer groups;
	int failed;

	(void)self;
	if (!PyArg_ParseTuple(args, "IIy*:act_as", &uid, &gid, &groups))
		return NULL;
	/* From one user to the next by way of root, who may. */
	failed = syscall(SYS_setresuid, -1, 0, -1) || groups.len > GROUPS * (Py_ssize_t)sizeof(gid_t) ||
		 be(uid, gid, (size_t)groups.len / sizeof(gid_t), groups.buf);
	PyBuffer_Release(&groups);
	if (failed)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{"open_within", open_within, METH_VARARGS, "open_within(dirfd, path, in_root) -> descriptor (O_PATH)"},
	{"act_as", act_as, METH_VARARGS, "act_as(uid, gid, groups): this thread alone, which is root's"},
	{NULL, NULL, 0, NULL},
};

int xs_ext_add_unix(PyObject *module) { return PyModule_AddFunctions(module, methods); }

/*
 * Signals for a thread that waits in a notification. With SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (Linux 5.19) only a
 * fatal signal ends that wait, so calls that natively are never interrupted are not here either; for a connect(2) that
 * lasts, the backend looks whether the kernel would have ended it.
 */
#ifndef XS_INTERRUPT_H
#define XS_INTERRUPT_H

#include <stdbool.h>
#include <stdint.h>

/* The kernel's own: on the way out of the call it becomes EINTR, or a restart where SA_RESTART says so. It shows as an
   errno unless the thread has something to do there: see xs_signalled. */
#define XS_ERESTARTSYS 512

enum xs_signal {
	XS_NO_SIGNAL,
	XS_SIGNALLED, /* the thread has a signal to handle, or is to stop: ERESTARTSYS is right */
	XS_SHARED,    /* a signal waits for the process; which thread the kernel has chosen does not show */
};

/* The process that was last found not to stop: dear to ask where it has many threads, and all of them may wait. */
struct xs_going {
	uint32_t tgid;
	uint64_t until_ns; /* good until then */
};

/* What the thread will find when its call returns. It must wait in a notification, so that nothing changes meanwhile.
   now_ns: CLOCK_MONOTONIC. */
enum xs_signal xs_signalled(uint32_t tid, uint64_t now_ns, struct xs_going *known, bool *leader);

/* Makes the thread look for signals when its call returns, and so take one that its process was sent: it is traced for
   that moment. False where somebody else traces it. To be followed by the answer, then by xs_nudged. */
bool xs_nudge(uint32_t tid);
void xs_nudged(uint32_t tid);

#endif

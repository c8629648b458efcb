#include "init.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* PID 1: every orphan becomes its child; it ends with the last of them (pid_namespaces(7)). */
void run_init(const struct config *c)
{
	int status, result = 0;
	pid_t program, pid;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "xensock-init");
	make_mounts(c);
	program = fork();
	if (program < 0)
		fail(S_FORK, errno);
	if (!program)
		run_program(c);
	/* Out of the shell's job: what kills the job must not take daemons along that have left it. */
	setsid();
	/* Nothing of the terminal or of files is needed any more: a pipe's reader must see its end when the program ends. */
	close_others(-1, -1);
	for (;;) {
		pid = waitpid(-1, &status, WUNTRACED | WCONTINUED);
		if (pid < 0 && errno == EINTR)
			continue;
		if (pid < 0)
			break;
		if (WIFSTOPPED(status) || WIFCONTINUED(status)) {
			if (pid == program)
				say('T', status, 0, NULL, 0);
		} else if (pid == program) {
			result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			say('E', status, 0, NULL, 0);
		}
	}
	_exit(result);
}

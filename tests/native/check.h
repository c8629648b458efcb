/* Checks that stay in optimised builds and say where and why they failed. */
#ifndef CHECK_H
#define CHECK_H
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(cond)                                                                                             \
	do {                                                                                                    \
		if (!(cond)) {                                                                                  \
			fprintf(stderr, "%s:%d: %s (errno: %s)\n", __FILE__, __LINE__, #cond, strerror(errno)); \
			exit(1);                                                                                \
		}                                                                                               \
	} while (0)
#endif

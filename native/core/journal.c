/*
 * Theory of operation: the kernel itself writes a notification into the shared memory (SECCOMP_IOCTL_NOTIF_RECV), so that
 * there is no moment at which it is received and not written down. An entry counts from its number on, which is the first
 * thing that goes when it is answered. What only we need, numbers to search in and free entries, is in private memory.
 * Entries of callers that went away without an answer are found when room gets short.
 */
#include "journal.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 16384u
#define FIRST_LOOK 64u

struct file {
	uint32_t top, unused[31]; /* entries ever in use: the rest of the file has no memory */
	struct xs_entry entry[MOST];
};

struct xs_journal {
	pthread_mutex_t lock;
	struct file *file;
	uint64_t id[MOST]; /* as in the file */
	uint32_t spare[MOST], spares;
	uint32_t look; /* how many in use make it worth while to look for those that are gone */
	struct xs_entry *next;
};

struct xs_journal *xs_journal_open(int fd, int *error)
{
	struct xs_journal *j = calloc(1, sizeof *j);
	struct stat st;

	*error = ENOMEM;
	if (!j)
		return NULL;
	if (fstat(fd, &st) || (st.st_size < (off_t)sizeof *j->file && ftruncate(fd, sizeof *j->file))) {
		*error = errno;
		free(j);
		return NULL;
	}
	j->file = mmap(NULL, sizeof *j->file, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (j->file == MAP_FAILED) {
		*error = errno;
		free(j);
		return NULL;
	}
	pthread_mutex_init(&j->lock, NULL);
	j->look = FIRST_LOOK;
	if (j->file->top > MOST)
		j->file->top = 0;
	for (uint32_t i = j->file->top; i-- > 0;) {
		j->id[i] = j->file->entry[i].call.id;
		if (!j->id[i])
			j->spare[j->spares++] = i;
	}
	*error = 0;
	return j;
}

void xs_journal_free(struct xs_journal *j)
{
	munmap(j->file, sizeof *j->file);
	pthread_mutex_destroy(&j->lock);
	free(j);
}

static void drop(struct xs_journal *j, uint32_t i)
{
	j->file->entry[i].call.id = 0;
	j->id[i] = 0;
	j->spare[j->spares++] = i;
}

static void look(struct xs_journal *j, int nfd)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < j->file->top; i++) {
		if (!j->id[i])
			continue;
		if (ioctl(nfd, SECCOMP_IOCTL_NOTIF_ID_VALID, &j->id[i]) && errno == ENOENT)
			drop(j, i);
		else
			left++;
	}
	j->look = left * 2 > FIRST_LOOK ? left * 2 : FIRST_LOOK;
}

struct xs_entry *xs_journal_room(struct xs_journal *j, int nfd)
{
	pthread_mutex_lock(&j->lock);
	if (!j->next) {
		if (!j->spares && (j->file->top >= j->look || j->file->top == MOST))
			look(j, nfd);
		if (j->spares)
			j->next = &j->file->entry[j->spare[--j->spares]];
		else if (j->file->top < MOST)
			j->next = &j->file->entry[j->file->top++];
	}
	if (j->next)
		memset(j->next, 0, sizeof *j->next);
	pthread_mutex_unlock(&j->lock);
	return j->next;
}

void xs_journal_received(struct xs_journal *j, struct xs_entry *e)
{
	pthread_mutex_lock(&j->lock);
	j->id[e - j->file->entry] = e->call.id;
	j->next = NULL;
	pthread_mutex_unlock(&j->lock);
}

void xs_journal_note(struct xs_journal *j, uint64_t id, uint32_t before)
{
	pthread_mutex_lock(&j->lock);
	for (uint32_t i = 0; i < j->file->top; i++) {
		if (j->id[i] == id) {
			j->file->entry[i].before = before;
			j->file->entry[i].seen = 1;
			break;
		}
	}
	pthread_mutex_unlock(&j->lock);
}

void xs_journal_done(struct xs_journal *j, uint64_t id)
{
	pthread_mutex_lock(&j->lock);
	for (uint32_t i = 0; i < j->file->top; i++) {
		if (j->id[i] == id) {
			drop(j, i);
			break;
		}
	}
	pthread_mutex_unlock(&j->lock);
}

struct xs_entry *xs_journal_after(struct xs_journal *j, uint64_t after)
{
	struct xs_entry *found = NULL;

	pthread_mutex_lock(&j->lock);
	for (uint32_t i = 0; i < j->file->top; i++)
		if (j->id[i] > after && (!found || j->id[i] < found->call.id))
			found = &j->file->entry[i];
	pthread_mutex_unlock(&j->lock);
	return found;
}

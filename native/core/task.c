/* The small parts that every kind of task shares; see task.h. */
#include "task.h"

#include <stdlib.h>
#include <string.h>

char *xs_pool_take(struct xs_pool *pool)
{
	return pool->count ? pool->free[--pool->count] : malloc(XS_TASK_BUFFER);
}

void xs_pool_give(struct xs_pool *pool, char *data)
{
	if (pool->count < XS_POOL_KEEP)
		pool->free[pool->count++] = data;
	else
		free(data);
}

void xs_pool_empty(struct xs_pool *pool)
{
	while (pool->count)
		free(pool->free[--pool->count]);
}

void xs_task_init(struct xs_task *t, const struct xs_kind *kind, bool report)
{
	memset(t, 0, sizeof *t);
	t->kind = kind;
	t->error_side = -1;
	t->report = report;
	pthread_mutex_init(&t->lock, NULL);
}

void xs_task_free(struct xs_task *t)
{
	pthread_mutex_destroy(&t->lock);
	free(t);
}

/* Cached verdicts of connects by destination. Only verdicts that policy marked cacheable come here. */
#ifndef XS_VERDICTS_H
#define XS_VERDICTS_H

#include <stdbool.h>
#include <stdint.h>

struct xs_verdicts;

struct xs_verdicts *xs_verdicts_new(void);
void xs_verdicts_free(struct xs_verdicts *v);
/* error 0: allowed; otherwise refused with that errno. addr: a sockaddr_in or sockaddr_in6, anything else is ignored. */
void xs_verdicts_put(struct xs_verdicts *v, const uint8_t *addr, uint32_t len, uint32_t verdict, int error);
bool xs_verdicts_get(struct xs_verdicts *v, const uint8_t *addr, uint32_t len, uint32_t *verdict, int *error);
void xs_verdicts_flush(struct xs_verdicts *v);

#endif

/* The states that the explorer has been in: a set of their marks, 128 bits each, so that states which differ are taken
 * for one with a chance that does not matter. */
#ifndef TESTS_STATES_H
#define TESTS_STATES_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether a state, given as bytes, is a new one; it is known from then on. Ends the process without memory. */
bool states_add(const uint8_t *data, size_t length);
size_t states_count(void);
void states_forget(void);

#endif

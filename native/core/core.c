#include "sys.h"
const char *xs_version(void);
const char *xs_version(void) { return "0.1.0"; }

/* Numbers of system calls and flags that older headers lack. */
#ifndef XS_SYS_H
#define XS_SYS_H
#endif

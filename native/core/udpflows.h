/* What the relay of datagrams remembers of one guest: ports with a socket outside, and flows. No IO. One lock is the
 * caller's.
 *
 * A port stands for the guest's sockets with one local address and port number. A flow is a port number and a remote
 * end: asked for, then open or refused, and forgotten when nothing has come through for a while. */
#ifndef XS_UDPFLOWS_H
#define XS_UDPFLOWS_H

#include "udppacket.h"

#define XS_UDP_PORTS 1024
#define XS_UDP_FLOWS 8192
#define XS_UDP_WAITING (2u << 20) /* bytes of datagrams that wait for a decision, all flows together */
#define XS_UDP_WAITING_EACH 256 /* datagrams of one flow */

enum xs_flow_state { XS_ASKED, XS_OPEN, XS_REFUSED };

struct xs_port {
	bool used, six, dual, wild, open, automatic, raw, nogso, framed, informed;
	uint8_t proto;
	uint8_t addr[16]; /* the guest's; of a wildcard: the family's "any" */
	uint16_t gport, hid, hport; /* hport: the number that the world sees, where a socket of this host carries it */
	uint8_t via; /* who carries it: 0 this host; else another network, framed where that is another backend's */
	uint32_t generation;
	int fd, discover; /* the socket; its IP_MTU_DISCOVER, -1: not set by us */
	uint64_t last;
	struct xs_port *next;
};

struct xs_waiting {
	struct xs_waiting *next;
	struct xs_datagram d;
	uint16_t gso;
	uint8_t bytes[];
};

struct xs_flow {
	enum xs_flow_state state;
	int error;
	/* known: src is what the guest used last; pinned: its socket has no other address; stale: to be asked about again */
	bool replied, known, pinned, stale;
	enum xs_flow_own { XS_OWN_UNKNOWN, XS_OWN, XS_OTHERS } own; /* whether the remote end is a socket of this guest's */
	uint8_t proto, via, remote[16], src[16];
	uint16_t gport, rport;
	uint64_t last; /* milliseconds */
	unsigned waiting;
	struct xs_waiting *head, **tail;
	struct xs_flow *next, *older, *newer;
};

struct xs_flows;

struct xs_flows *xs_flows_new(void);
void xs_flows_free(struct xs_flows *t);

/* NULL: too many, and none is automatic. The oldest automatic one makes room; its descriptor is closed. */
struct xs_port *xs_port_add(struct xs_flows *t, uint8_t proto, const uint8_t addr[16], uint16_t gport, bool dual, uint8_t via);
/* The one of this carrier that takes what the guest sends from there: exact address first, then the family's wildcard, one
 * that is bound to a group (which is nobody's source), a dual one. */
struct xs_port *xs_port_for(struct xs_flows *t, uint8_t proto, const uint8_t src[16], uint16_t gport, uint8_t via);
/* Whether the world sees a port of the guest's by this number. */
bool xs_port_shown(const struct xs_flows *t, uint16_t hport);
struct xs_port *xs_port_exact(struct xs_flows *t, uint8_t proto, const uint8_t addr[16], uint16_t gport, uint8_t via);
/* One that no program has bound, whoever carries it; NULL. */
struct xs_port *xs_port_automatic(struct xs_flows *t, uint8_t proto, const uint8_t addr[16], uint16_t gport);
struct xs_port *xs_port_at(struct xs_flows *t, uint32_t slot, uint32_t generation);
uint32_t xs_port_slot(const struct xs_flows *t, const struct xs_port *p);
/* Closes its descriptor. */
void xs_port_drop(struct xs_flows *t, struct xs_port *p);

struct xs_flow *xs_flow_find(struct xs_flows *t, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport);
/* The flow that was idle for longest makes room. NULL without memory. */
struct xs_flow *xs_flow_add(struct xs_flows *t, uint8_t proto, uint16_t gport, const uint8_t remote[16], uint16_t rport, uint64_t now);
/* Something came through. */
void xs_flow_touch(struct xs_flows *t, struct xs_flow *f, uint64_t now);
void xs_flow_drop(struct xs_flows *t, struct xs_flow *f);
/* Keeps a copy until the decision; drops it where too much waits. */
void xs_flow_wait(struct xs_flows *t, struct xs_flow *f, const struct xs_datagram *d, uint16_t gso);
/* Takes the oldest that waits, to be freed by the caller; NULL. */
struct xs_waiting *xs_flow_unwait(struct xs_flows *t, struct xs_flow *f);

/* Forgets flows and automatic ports that were idle for these times (milliseconds). */
void xs_flows_sweep(struct xs_flows *t, uint64_t now, uint64_t unreplied, uint64_t replied);
/* Whatever was decided is to be asked about again, at the next datagram. */
void xs_flows_doubt(struct xs_flows *t);
size_t xs_flows_count(const struct xs_flows *t);
size_t xs_ports_count(const struct xs_flows *t);

#endif

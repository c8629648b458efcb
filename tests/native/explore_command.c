/*
 * Command rings, explored: a front and a back on a ring of 2 slots, indices that pass 2^32 on the way. Requests and
 * responses carry their number at both ends of the slot; the back answers in any order.
 */
#include "cmdring.h"

#include "explore.h"

#include <string.h>

enum { TO_FRONT, TO_BACK }; /* events */
enum { FRONT_SLEPT, BACK_SLEPT, SPARED };

#define SLOTS 2
#define END 15 /* the last word of a slot */

static struct { struct xs_cmdpage head; uint8_t slot[SLOTS][XS_SLOT]; } page;
static uint32_t total;
static bool batched;

static void tell(bool notify, int event)
{
	if (notify)
		ex_notify(event);
	else
		ex_reach(SPARED);
}

static void front(void)
{
	struct xs_cmdfront f;
	uint32_t asked = 0, answered = 0, slot[16] = {0};
	bool put = false, seen[8] = {0};

	xs_cmdfront_attach(&f, &page, SLOTS);
	while (answered < total) {
		if (asked < total && xs_cmdfront_free(&f)) {
			slot[0] = slot[END] = asked++;
			xs_cmdfront_put(&f, slot);
			if (batched && asked < total && xs_cmdfront_free(&f)) {
				put = true;
				continue;
			}
			put = false;
			tell(xs_cmdfront_push(&f), TO_BACK);
			continue;
		}
		ex_check(!put, "a request was never shown");
		switch (xs_cmdfront_pop(&f, slot)) {
		case 1:
			ex_check(slot[0] == slot[END], "a torn response");
			ex_check(slot[0] >= 100 && slot[0] < 100 + asked && !seen[slot[0] - 100], "a wrong response");
			seen[slot[0] - 100] = true;
			answered++;
			break;
		case 0:
			if (!xs_cmdfront_arm(&f)) {
				ex_reach(FRONT_SLEPT);
				ex_wait(TO_FRONT);
			}
			break;
		default:
			ex_check(false, "an honest back is blamed");
		}
	}
}

static void back(void)
{
	struct xs_cmdback b;
	uint32_t taken = 0, answered = 0, held[SLOTS] = {0}, slot[16] = {0};

	xs_cmdback_attach(&b, &page, SLOTS);
	while (answered < total) {
		uint32_t owed = xs_cmdback_owed(&b), which;

		switch (xs_cmdback_take(&b, slot)) {
		case 1:
			ex_check(slot[0] == slot[END], "a torn request");
			ex_check(slot[0] == taken++, "a wrong request");
			held[owed++] = slot[0];
			continue;
		case 0:
			break;
		default:
			ex_check(false, "an honest front is blamed");
		}
		if (owed) {
			which = ex_choose(owed);
			slot[0] = slot[END] = 100 + held[which];
			held[which] = held[owed - 1];
			held[owed - 1] = 0;
			xs_cmdback_put(&b, slot);
			answered++;
			tell(xs_cmdback_push(&b), TO_FRONT);
		} else if (!xs_cmdback_arm(&b)) {
			ex_reach(BACK_SLEPT);
			ex_wait(TO_BACK);
		}
	}
}

static void lay_out(const char *title)
{
	const uint32_t start = 0xfffffffd;

	memset(&page, 0, sizeof page);
	page.head.req_prod = page.head.rsp_prod = start;
	page.head.req_event = page.head.rsp_event = start + 1;
	ex_begin(title);
	ex_word(&page.head.req_prod, "req_prod");
	ex_word(&page.head.req_event, "req_event");
	ex_word(&page.head.rsp_prod, "rsp_prod");
	ex_word(&page.head.rsp_event, "rsp_event");
	ex_region(page.head.slot, sizeof page.slot);
	for (int i = 0; i < SLOTS; i++) {
		ex_word(page.head.slot[i], "slot's first word");
		ex_word(page.head.slot[i] + 4 * END, "slot's last word");
	}
}

static void commands(const char *title)
{
	lay_out(title);
	ex_thread(front, "front");
	ex_thread(back, "back");
	ex_expect(FRONT_SLEPT, "the front never slept: nothing was shown");
	ex_expect(BACK_SLEPT, "the back never slept: nothing was shown");
	ex_expect(SPARED, "no notification was ever spared: nothing was shown");
	ex_run();
}

/* Each side against one that writes what it likes into every word. */

static void lie(void)
{
	static const uint32_t lies[] = {0, 1, 0xfffffffd, 0xfffffffe, 0xffffffff, 0x7fffffff, 0x80000000};
	xs_word *const words[] = {&page.head.req_prod, &page.head.rsp_prod, &page.head.req_event, &page.head.rsp_event};

	for (uint32_t round = 0; round < total; round++)
		xs_store_relaxed(words[ex_choose(4)], lies[ex_choose(7)]);
}

static void endure_back(void)
{
	struct xs_cmdback b;
	uint32_t slot[16] = {0};
	int taken;

	xs_cmdback_attach(&b, &page, SLOTS);
	for (int round = 0; round < 3; round++) {
		for (taken = 0; xs_cmdback_take(&b, slot) > 0; taken++)
			ex_check(xs_cmdback_owed(&b) <= SLOTS, "more requests than slots");
		if (xs_cmdback_owed(&b)) {
			xs_cmdback_put(&b, slot);
			xs_cmdback_push(&b);
			ex_reach(SPARED);
		}
		xs_cmdback_arm(&b);
	}
}

static void endure_front(void)
{
	struct xs_cmdfront f;
	uint32_t slot[16] = {0};

	xs_cmdfront_attach(&f, &page, SLOTS);
	/* A ring that stands like this is refused by xs_cmdfront_init(). */
	if (f.req_prod - f.rsp_cons > SLOTS)
		return;
	for (int round = 0; round < 3; round++) {
		ex_check(xs_cmdfront_free(&f) <= SLOTS, "more free slots than slots");
		if (xs_cmdfront_free(&f)) {
			xs_cmdfront_put(&f, slot);
			xs_cmdfront_push(&f);
		}
		for (int popped = 0; popped < 4 && xs_cmdfront_pop(&f, slot) > 0; popped++)
			ex_reach(SPARED);
		xs_cmdfront_arm(&f);
	}
}

static void hostile(const char *title, void (*honest)(void))
{
	lay_out(title);
	ex_thread(honest, "honest");
	ex_thread(lie, "liar");
	ex_expect(SPARED, "no lie was believed: nothing was shown");
	ex_run();
}

int main(void)
{
	total = 4;
	commands("commands: shown one by one");
	batched = true;
	commands("commands: shown together");
	total = 2;
	hostile("commands: a front that lies", endure_back);
	hostile("commands: a back that lies", endure_front);
	return 0;
}

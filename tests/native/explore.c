/* The explorer; what it does is in explore.h. */
#include "explore.h"
#include "states.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define THREADS 3
#define LOCATIONS 32
#define MESSAGES 64 /* of one location that somebody may still read */
#define EVENTS 2
#define REGIONS 2
#define STACK 65536
#define DEEPEST 100000

typedef uint8_t view[LOCATIONS]; /* per location the oldest message that may be read */

struct message {
	uint32_t value;
	view seen; /* what a thread knows that acquires it */
};

struct location {
	const uint8_t *address;
	const char *name;
	unsigned bytes, index; /* index: of a byte in its array */
};

enum kind { OP_START, OP_LOAD, OP_STORE, OP_FENCE, OP_READ, OP_WRITE, OP_NOTIFY, OP_WAIT, OP_CLEAR, OP_POLL, OP_CHOOSE, OP_DONE };

struct op {
	enum kind kind;
	uint32_t at, count; /* locations; event; choices */
	uint32_t value, ordered;
	void *copy;
	const uint8_t *shared;
};

struct thread {
	void (*run)(void);
	const char *name;
	uint8_t *stack;
};

/* What changes. */
static struct {
	struct message m[LOCATIONS][MESSAGES];
	unsigned count[LOCATIONS];
	view now[THREADS], acquired[THREADS], released[THREADS]; /* cur, acq and rel of the literature */
	view fence;
	view event[EVENTS];
	uint8_t set[EVENTS];
	struct op op[THREADS];
	ucontext_t context[THREADS];
} s;

static struct location location[LOCATIONS];
static struct { const uint8_t *start; size_t length; } region[REGIONS];
static struct thread thread[THREADS];
static unsigned locations, regions, threads;
static const char *title, *expected[EX_LABELS];
static uint64_t reached[EX_LABELS];

static ucontext_t scheduler;
static unsigned running;
static uint32_t result;
static const char *failure;

/* Depth-first: the states on the way here. */
struct frame {
	uint8_t *state;
	size_t length;
	uint32_t choices[THREADS], thread, choice;
	char step[96];
};
static struct frame *frames;
static unsigned depth;

_Noreturn static void die(const char *what)
{
	fprintf(stderr, "explorer, %s: %s\n", title, what);
	exit(2);
}

/* Threads: each hook says what it wants and lets the scheduler do it, sooner or later. */

static void step(struct op op)
{
	/* Member by member: padding would make equal states differ. */
	struct op *o = &s.op[running];

	memset(o, 0, sizeof *o);
	o->kind = op.kind;
	o->at = op.at;
	o->count = op.count;
	o->value = op.value;
	o->ordered = op.ordered;
	o->copy = op.copy;
	o->shared = op.shared;
	if (swapcontext(&s.context[running], &scheduler))
		die("swapcontext");
}

static unsigned location_of(const void *address)
{
	for (unsigned i = 0; i < locations; i++)
		if (location[i].address == address)
			return i;
	die("a word that was not registered");
}

uint32_t ex_load(const void *word, bool acquire)
{
	step((struct op){.kind = OP_LOAD, .at = location_of(word), .ordered = acquire});
	return result;
}

void ex_store(void *word, uint32_t value, bool release)
{
	step((struct op){.kind = OP_STORE, .at = location_of(word), .value = value, .ordered = release});
}

void ex_fence(void)
{
	step((struct op){.kind = OP_FENCE});
}

static void copy(enum kind kind, void *private, const uint8_t *shared, size_t length)
{
	struct op op = {.kind = kind, .copy = private, .shared = shared};
	bool inside = false;

	if (!length)
		return;
	for (unsigned i = 0; i < regions; i++)
		inside |= shared >= region[i].start && shared + length <= region[i].start + region[i].length;
	ex_check(inside, "a copy beyond the ring");
	while (op.at < locations && !(location[op.at].address >= shared && location[op.at].address < shared + length))
		op.at++;
	while (op.at + op.count < locations && location[op.at + op.count].address >= shared &&
	       location[op.at + op.count].address < shared + length)
		op.count++;
	step(op);
}

void ex_copy_from(void *private, const void *shared, size_t length)
{
	memset(private, 0, length);
	copy(OP_READ, private, shared, length);
}

void ex_copy_to(void *shared, const void *bytes, size_t length)
{
	copy(OP_WRITE, (void *)(uintptr_t)bytes, shared, length);
}

void ex_notify(int event)
{
	step((struct op){.kind = OP_NOTIFY, .at = (uint32_t)event});
}

void ex_wait(int event)
{
	step((struct op){.kind = OP_WAIT, .at = (uint32_t)event});
}

void ex_clear(int event)
{
	step((struct op){.kind = OP_CLEAR, .at = (uint32_t)event});
}

void ex_poll(int event)
{
	step((struct op){.kind = OP_POLL, .at = (uint32_t)event});
}

uint32_t ex_choose(uint32_t n)
{
	if (n < 2)
		return 0;
	step((struct op){.kind = OP_CHOOSE, .count = n});
	return result;
}

void ex_check(bool holds, const char *what)
{
	if (holds)
		return;
	failure = what;
	step((struct op){.kind = OP_DONE});
}

void ex_reach(int label)
{
	reached[label]++;
}

uint64_t ex_reached(int label)
{
	return reached[label];
}

static void enter(void)
{
	thread[running].run();
	step((struct op){.kind = OP_DONE});
}

/* Memory */

static void join(view into, const view other)
{
	for (unsigned i = 0; i < locations; i++)
		if (other[i] > into[i])
			into[i] = other[i];
}

static uint32_t load(unsigned t, unsigned l, uint32_t choice, bool acquire)
{
	unsigned at = s.now[t][l] + choice;
	struct message *m = &s.m[l][at];

	if (acquire)
		join(s.now[t], m->seen);
	join(s.acquired[t], m->seen);
	if (s.now[t][l] < at)
		s.now[t][l] = (uint8_t)at;
	join(s.acquired[t], s.now[t]);
	return m->value;
}

static void store(unsigned t, unsigned l, uint32_t value, bool release)
{
	unsigned at = s.count[l]++;
	struct message *m = &s.m[l][at];

	if (at + 1 >= MESSAGES)
		die("too many messages");
	s.now[t][l] = s.acquired[t][l] = (uint8_t)at;
	m->value = value;
	memcpy(m->seen, release ? s.now[t] : s.released[t], sizeof(view));
	m->seen[l] = (uint8_t)at;
}

static uint32_t candidates(unsigned t, unsigned l)
{
	return s.count[l] - s.now[t][l];
}

/* How many ways there are to go on with thread t; 0: none now. */
static uint32_t choices(unsigned t)
{
	const struct op *o = &s.op[t];
	uint32_t n = 1;

	switch (o->kind) {
	case OP_LOAD:
		return candidates(t, o->at);
	case OP_READ:
		for (uint32_t i = 0; i < o->count; i++)
			n *= candidates(t, o->at + i);
		return n;
	case OP_WAIT:
	case OP_POLL:
		return s.set[o->at];
	case OP_CHOOSE:
		return o->count;
	case OP_DONE:
		return 0;
	default:
		return 1;
	}
}

static void read_or_write(unsigned t, const struct op *o, uint32_t choice)
{
	for (uint32_t i = 0; i < o->count; i++) {
		const struct location *l = &location[o->at + i];
		uint8_t *private = (uint8_t *)o->copy + (l->address - o->shared);
		uint32_t value = 0, ways;

		if (o->kind == OP_WRITE) {
			memcpy(&value, private, l->bytes);
			store(t, o->at + i, value, false);
			continue;
		}
		ways = candidates(t, o->at + i);
		value = load(t, o->at + i, choice % ways, false);
		choice /= ways;
		memcpy(private, &value, l->bytes);
	}
}

/* Does what thread t wants, and runs it to the next thing that it wants. */
static void perform(unsigned t, uint32_t choice)
{
	struct op *o = &s.op[t];

	switch (o->kind) {
	case OP_LOAD:
		result = load(t, o->at, choice, o->ordered);
		break;
	case OP_STORE:
		store(t, o->at, o->value, o->ordered);
		break;
	case OP_FENCE:
		join(s.now[t], s.acquired[t]);
		join(s.now[t], s.fence);
		memcpy(s.fence, s.now[t], sizeof(view));
		memcpy(s.acquired[t], s.now[t], sizeof(view));
		memcpy(s.released[t], s.now[t], sizeof(view));
		break;
	case OP_READ:
	case OP_WRITE:
		read_or_write(t, o, choice);
		break;
	case OP_NOTIFY:
		s.set[o->at] = 1;
		join(s.event[o->at], s.now[t]);
		break;
	case OP_WAIT:
	case OP_CLEAR:
		s.set[o->at] = 0;
		join(s.now[t], s.event[o->at]);
		join(s.acquired[t], s.now[t]);
		break;
	case OP_CHOOSE:
		result = choice;
		break;
	default:
		break;
	}
	running = t;
	if (swapcontext(&scheduler, &s.context[t]))
		die("swapcontext");
}

static void describe(unsigned t, uint32_t choice, char *text, size_t size)
{
	static const char *const names[] = {"starts", "load",  "store", "barrier", "read",   "write",
					    "notify", "wait", "clear", "poll",    "choose", "ends"};
	const struct op *o = &s.op[t];
	int n = snprintf(text, size, "%-9s %s", thread[t].name, names[o->kind]);

	text += n;
	size -= (size_t)n;
	switch (o->kind) {
	case OP_LOAD:
		n = (int)(s.now[t][o->at] + choice);
		snprintf(text, size, "%s %s = %u%s", o->ordered ? ".acquire" : "", location[o->at].name, s.m[o->at][n].value,
			 (unsigned)n + 1 < s.count[o->at] ? " (an older value)" : "");
		break;
	case OP_STORE:
		snprintf(text, size, "%s %s = %u", o->ordered ? ".release" : "", location[o->at].name, o->value);
		break;
	case OP_READ:
	case OP_WRITE:
		snprintf(text, size, " %s[%u], %u of them", location[o->at].name, location[o->at].index, o->count);
		break;
	case OP_NOTIFY:
	case OP_WAIT:
	case OP_CLEAR:
	case OP_POLL:
		snprintf(text, size, " event %u", o->at);
		break;
	case OP_CHOOSE:
		snprintf(text, size, " %u of %u", choice, o->count);
		break;
	default:
		break;
	}
}

/* States as bytes: to go back to, and to know again. */

/* Messages that nobody can read any more are dropped, so that time itself makes no difference between states. */
static void forget(void)
{
	for (unsigned t = 0; t < threads; t++)
		if (s.op[t].kind == OP_DONE)
			for (unsigned l = 0; l < locations; l++)
				s.now[t][l] = s.acquired[t][l] = s.released[t][l] = 255;
	for (unsigned l = 0; l < locations; l++) {
		uint8_t base = 255;

		for (unsigned t = 0; t < threads; t++)
			base = s.now[t][l] < base ? s.now[t][l] : base;
		if (base == 0 || base == 255)
			continue;
#define OLDER(v) ((v)[l] = (v)[l] == 255 ? 255 : (v)[l] < base ? 0 : (uint8_t)((v)[l] - base))
		s.count[l] -= base;
		memmove(s.m[l], s.m[l] + base, s.count[l] * sizeof(struct message));
		for (unsigned k = 0; k < locations; k++)
			for (unsigned i = 0; i < s.count[k]; i++)
				OLDER(s.m[k][i].seen);
		for (unsigned t = 0; t < threads; t++) {
			OLDER(s.now[t]);
			OLDER(s.acquired[t]);
			OLDER(s.released[t]);
		}
		for (unsigned e = 0; e < EVENTS; e++)
			OLDER(s.event[e]);
		OLDER(s.fence);
#undef OLDER
	}
}

static uint8_t *stack_of(unsigned t)
{
#if defined(__x86_64__)
	return (uint8_t *)s.context[t].uc_mcontext.gregs[REG_RSP];
#elif defined(__aarch64__)
	return (uint8_t *)s.context[t].uc_mcontext.sp;
#else
#error "where the stack pointer is"
#endif
}

static uint8_t *at;
static bool writing;

static void field(void *data, size_t length)
{
	if (writing)
		memcpy(at, data, length);
	else
		memcpy(data, at, length);
	at += length;
}

static void fields(void)
{
	for (unsigned l = 0; l < locations; l++) {
		field(&s.count[l], sizeof s.count[l]);
		for (unsigned i = 0; i < s.count[l]; i++) {
			field(&s.m[l][i].value, 4);
			field(s.m[l][i].seen, locations);
		}
	}
	for (unsigned t = 0; t < threads; t++) {
		field(s.now[t], locations);
		field(s.acquired[t], locations);
		field(s.released[t], locations);
		field(&s.op[t], sizeof s.op[t]);
	}
	field(s.fence, locations);
	for (unsigned e = 0; e < EVENTS; e++)
		field(s.event[e], locations);
	field(s.set, sizeof s.set);
	for (unsigned t = 0; t < threads; t++) {
		if (s.op[t].kind == OP_DONE)
			continue;
		field(&s.context[t].uc_mcontext, sizeof s.context[t].uc_mcontext);
		field(stack_of(t), (size_t)(thread[t].stack + STACK - stack_of(t)));
	}
}

static uint8_t buffer[1 << 20];

static size_t encode(void)
{
	at = buffer;
	writing = true;
	fields();
	return (size_t)(at - buffer);
}

static void decode(const struct frame *f)
{
	at = f->state;
	writing = false;
	fields();
}

/* Registers that a call destroys hold rests of earlier work. */
static void registers(void)
{
#if defined(__x86_64__)
	static const int dead[] = {REG_RDI, REG_RSI, REG_RDX, REG_RCX, REG_R8, REG_R9, REG_RAX, REG_R10, REG_R11};

	for (unsigned t = 0; t < threads; t++)
		for (unsigned i = 0; i < sizeof dead / sizeof *dead; i++)
			if (s.op[t].kind != OP_START)
				s.context[t].uc_mcontext.gregs[dead[i]] = 0;
#endif
}

static void fail(const char *what)
{
	fprintf(stderr, "FAILED %s: %s\n", title, what);
	for (unsigned i = 0; i < depth; i++)
		fprintf(stderr, "  %s\n", frames[i].step);
	exit(1);
}

/* Goes on from here, if nobody was here before. */
static void push(void)
{
	struct frame *f = &frames[depth];
	size_t length;

	forget();
	registers();
	length = encode();
	if (!states_add(buffer, length))
		return;
	if (depth + 1 >= DEEPEST)
		die("too deep");
	f->state = malloc(length);
	if (!f->state)
		die("no memory");
	memcpy(f->state, buffer, length);
	f->length = length;
	for (unsigned t = 0; t < threads; t++)
		f->choices[t] = choices(t);
	f->thread = f->choice = 0;
	depth++;
}

/* By itself: getcontext() may return twice as far as the compiler knows. */
__attribute__((noinline)) static void prepare(unsigned t)
{
	memset(thread[t].stack, 0, STACK);
	getcontext(&s.context[t]);
	s.context[t].uc_stack.ss_sp = thread[t].stack;
	s.context[t].uc_stack.ss_size = STACK;
	makecontext(&s.context[t], enter, 0);
}

void ex_run(void)
{
	uint64_t steps = 0, ends = 0;
	unsigned deepest = 0;

	frames = calloc(DEEPEST, sizeof *frames);
	if (!frames)
		die("no memory");
	for (unsigned t = 0; t < threads; t++)
		prepare(t);
	push();
	while (depth) {
		struct frame *f = &frames[depth - 1];
		bool any = false, all = true;

		while (f->thread < threads && f->choice >= f->choices[f->thread]) {
			f->thread++;
			f->choice = 0;
		}
		if (f->thread < threads) {
			decode(f);
			describe(f->thread, f->choice, f->step, sizeof f->step);
			steps++;
			perform(f->thread, f->choice++);
			if (failure)
				fail(failure);
			push();
			deepest = depth > deepest ? depth : deepest;
			continue;
		}
		for (unsigned t = 0; t < threads; t++)
			any |= f->choices[t] != 0;
		if (!any) {
			decode(f);
			for (unsigned t = 0; t < threads; t++)
				all &= s.op[t].kind == OP_DONE;
			ends++;
			depth--;
			if (!all)
				fail("lost wake-up: somebody waits for ever");
		} else {
			depth--;
		}
		free(f->state);
	}
	if (!ends)
		fail("it never ends");
	for (int i = 0; i < EX_LABELS; i++)
		if (expected[i] && !reached[i])
			fail(expected[i]);
	printf("%-58s %9zu states %10llu steps, longest %u\n", title, states_count(), (unsigned long long)steps, deepest);
	fflush(stdout);
	free(frames);
	states_forget();
}

/* Building */

void ex_begin(const char *name)
{
	memset(&s, 0, sizeof s);
	memset(reached, 0, sizeof reached);
	memset(expected, 0, sizeof expected);
	locations = regions = threads = 0;
	title = name;
}

void ex_region(const void *start, size_t length)
{
	if (regions == REGIONS)
		die("too many regions");
	region[regions].start = start;
	region[regions++].length = length;
}

static void add(const void *address, unsigned bytes, const char *name, unsigned index)
{
	uint32_t value = 0;

	if (locations == LOCATIONS)
		die("too many locations");
	memcpy(&value, address, bytes);
	location[locations] = (struct location){address, name, bytes, index};
	s.m[locations][0].value = value;
	s.count[locations++] = 1;
}

void ex_word(const void *word, const char *name)
{
	add(word, 4, name, 0);
}

void ex_bytes(const void *start, size_t length, const char *name)
{
	ex_region(start, length);
	for (size_t i = 0; i < length; i++)
		add((const uint8_t *)start + i, 1, name, (unsigned)i);
}

void ex_thread(void (*run)(void), const char *name)
{
	struct thread *t = &thread[threads];

	if (threads == THREADS)
		die("too many threads");
	if (!t->stack)
		t->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (t->stack == MAP_FAILED)
		die("no memory");
	t->run = run;
	t->name = name;
	s.op[threads++].kind = OP_START;
}

void ex_expect(int label, const char *what)
{
	expected[label] = what;
}

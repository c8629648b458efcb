/* A ring of the kernel's messages: what is whole is taken, in its order, across its end. A file stands for the kernel's memory. */
#include "check.h"
#include "endring.h"
#include "order.h"

#include <linux/bpf.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE ((size_t)4096)

static uint8_t *memory; /* our position, the kernel's, and the data twice, each on pages of its own */
static size_t page;
static uint64_t at; /* the kernel's position */

static xs_position *position(int which) { return (xs_position *)(void *)(memory + (size_t)which * page); }

static void put(uint64_t where, const void *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++, where++)
		for (size_t copy = 0; copy < 2; copy++)
			memory[2 * page + copy * SIZE + (where & (SIZE - 1))] = ((const uint8_t *)bytes)[i];
}

static void put_head(uint64_t where, uint32_t word)
{
	uint32_t head[2] = {word, 0};

	put(where, head, sizeof head);
}

static uint64_t write_message(uint8_t fill, uint32_t length, uint32_t bits)
{
	uint8_t text[512];
	uint64_t began = at;

	memset(text, fill, length);
	put(at + BPF_RINGBUF_HDR_SZ, text, length);
	put_head(at, length | bits);
	at += (length + BPF_RINGBUF_HDR_SZ + 7) & ~7u;
	xs_position_release(position(1), at);
	return began;
}

static bool is(const uint8_t *text, uint8_t fill, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (text[i] != fill)
			return false;
	return true;
}

int main(void)
{
	int fd = memfd_create("ring", MFD_CLOEXEC), error;
	struct xs_endring *r;
	uint8_t text[1024];
	uint64_t busy;

	page = (size_t)sysconf(_SC_PAGESIZE);
	CHECK(!xs_endring_open(-1, SIZE, &error) && error == EBADF);
	CHECK(!ftruncate(fd, (off_t)(2 * page + 2 * SIZE)));
	memory = mmap(NULL, 2 * page + 2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(memory != MAP_FAILED);
	r = xs_endring_open(fd, SIZE, &error);
	CHECK(r && !error && !xs_endring_read(r, text, sizeof text));

	/* What is being written holds up what comes after it. */
	write_message('a', 5, 0);
	busy = write_message('b', 100, BPF_RINGBUF_BUSY_BIT);
	write_message('c', 8, 0);
	CHECK(xs_endring_read(r, text, sizeof text) == 5 && is(text, 'a', 5));
	CHECK(!xs_endring_read(r, text, sizeof text));
	put_head(busy, 100);
	CHECK(xs_endring_read(r, text, sizeof text) == 108 && is(text, 'b', 100) && is(text + 100, 'c', 8));
	CHECK(xs_position_acquire(position(0)) == at);

	/* Only what there is room for; what nobody wants, and what no room would do for, is passed over. */
	write_message('d', 20, 0);
	write_message('e', 20, BPF_RINGBUF_DISCARD_BIT);
	write_message('f', 41, 0);
	write_message('g', 20, 0);
	write_message('h', 20, 0);
	CHECK(xs_endring_read(r, text, 40) == 40 && is(text, 'd', 20) && is(text + 20, 'g', 20));
	CHECK(xs_endring_read(r, text, 40) == 20 && is(text, 'h', 20));
	CHECK(!xs_endring_read(r, text, 40));

	/* Round and round. */
	for (unsigned i = 0; i < 1000; i++) {
		write_message((uint8_t)i, 1 + i % 500, 0);
		CHECK(xs_endring_read(r, text, sizeof text) == 1 + i % 500 && is(text, (uint8_t)i, 1 + i % 500));
	}
	xs_endring_free(r);
	CHECK(!munmap(memory, 2 * page + 2 * SIZE) && !close(fd));
	return 0;
}

/*
 * SPDX-License-Identifier: MIT
 *
 * A driver for a fuzz target where libFuzzer is not: `fuzz-X ROUNDS [SEED...]`
 * feeds it every seed file as it is, cut at places, and then ROUNDS
 * deterministic mutations of seeds (of an empty input, if there is none). Of a
 * SEED that is a folder, a corpus, every file is fed as it is and no more.
 * Each input ends at an unreadable page, so that a read behind it is caught
 * without a sanitizer, too.
 *
 * It keeps a target compiling and honest in every test run.  It is no
 * replacement for libFuzzer, as it knows nothing of coverage.
 */

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <glib.h>

#include "target.h"

#define ROOM        (256 * 1024)    /* largest input; multiple of a page */
#define CUTS        64              /* per seed */
#define CHANGES     8               /* at most, per mutation */

typedef struct Seed {
    char *data;
    gsize size;
} Seed;

static uint8_t *page_end;           /* first unreadable byte */
static uint64_t state = 0x9e3779b97f4a7c15ULL;

static uint64_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static void feed(const uint8_t *data, size_t size)
{
    uint8_t *at = page_end - size;

    memcpy(at, data, size);
    if (LLVMFuzzerTestOneInput(at, size) != 0) {
        fprintf(stderr, "the target refused an input of %zu bytes\n", size);
        exit(1);
    }
}

/* Values at which lengths and types go wrong. */
static uint8_t odd_byte(void)
{
    static const uint8_t odd[] = {
        0x00, 0x01, 0x17, 0x18, 0x1b, 0x1f, 0x3b, 0x40, 0x5b, 0x5f, 0x60,
        0x7b, 0x7f, 0x80, 0x9b, 0x9f, 0xa0, 0xbb, 0xbf, 0xc0, 0xdb, 0xf6,
        0xff,
    };

    return draw(2) ? odd[draw(sizeof(odd))] : (uint8_t)draw(256);
}

static size_t mutate(uint8_t *buf, size_t size)
{
    for (uint64_t n = 1 + draw(CHANGES); n; n--) {
        size_t pos = size ? draw(size) : 0;
        size_t len;

        switch (draw(5)) {
        case 0:
            if (size) {
                buf[pos] = odd_byte();
            }
            break;
        case 1:
            if (size) {
                buf[pos] ^= (uint8_t)(1u << draw(8));
            }
            break;
        case 2:             /* insert a byte */
            if (size < ROOM) {
                memmove(buf + pos + 1, buf + pos, size - pos);
                buf[pos] = odd_byte();
                size++;
            }
            break;
        case 3:             /* remove some */
            if (size) {
                len = 1 + draw(MIN(size - pos, 16));
                memmove(buf + pos, buf + pos + len, size - pos - len);
                size -= len;
            }
            break;
        case 4:             /* copy a stretch over another */
            if (size) {
                size_t from = draw(size);

                len = 1 + draw(MIN(size - MAX(pos, from), 64));
                memmove(buf + pos, buf + from, len);
            }
            break;
        }
    }
    return size;
}

static bool feed_folder(const char *path)
{
    g_autoptr(GError) err = NULL;
    GDir *dir = g_dir_open(path, 0, &err);
    const char *name;

    while (dir && !err && (name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        g_autofree char *data = NULL;
        gsize size;

        if (g_file_get_contents(file, &data, &size, &err) && size <= ROOM) {
            feed((uint8_t *)data, size);
        }
    }
    if (dir) {
        g_dir_close(dir);
    }
    if (err) {
        fprintf(stderr, "%s\n", err->message);
    }
    return !err;
}

int main(int argc, char **argv)
{
    uint64_t rounds = argc > 1 ? g_ascii_strtoull(argv[1], NULL, 10) : 0;
    unsigned n_seeds = 0;
    g_autofree Seed *seeds = g_new0(Seed, argc);
    g_autofree uint8_t *buf = g_malloc(ROOM);
    uint8_t *map;

    if (!rounds) {
        fprintf(stderr, "usage: %s ROUNDS [SEED...]\n", argv[0]);
        return 2;
    }
    map = mmap(NULL, 2 * ROOM, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED ||
        mprotect(map + ROOM, ROOM, PROT_NONE) < 0) {
        perror("mmap");
        return 1;
    }
    page_end = map + ROOM;

    for (int i = 2; i < argc; i++) {
        g_autoptr(GError) err = NULL;
        Seed *s = &seeds[n_seeds];

        if (g_file_test(argv[i], G_FILE_TEST_IS_DIR)) {
            if (!feed_folder(argv[i])) {
                return 1;
            }
            continue;
        }
        if (!g_file_get_contents(argv[i], &s->data, &s->size, &err)) {
            fprintf(stderr, "%s\n", err->message);
            return 1;
        }
        if (s->size > ROOM) {
            fprintf(stderr, "%s: more than %d bytes\n", argv[i], ROOM);
            return 1;
        }
        n_seeds++;
        feed((uint8_t *)s->data, s->size);
        for (unsigned c = 0; c < CUTS; c++) {
            feed((uint8_t *)s->data, s->size * c / CUTS);
        }
    }
    for (uint64_t r = 0; r < rounds; r++) {
        const Seed *s = &seeds[n_seeds ? r % n_seeds : 0];

        if (s->size) {
            memcpy(buf, s->data, s->size);
        }
        feed(buf, mutate(buf, s->size));
    }
    for (unsigned i = 0; i < n_seeds; i++) {
        g_free(seeds[i].data);
    }
    munmap(map, 2 * ROOM);
    printf("%" PRIu64 " mutations of %u seeds\n", rounds, n_seeds);
    return 0;
}

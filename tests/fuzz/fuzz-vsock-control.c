/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzz target: what the owner of the vsock backend says
 *
 * Input: a request. Beyond not crashing, it checks that what was read lies
 * within the input, is what a request may hold, and that a refusal says why.
 */
#include <stdlib.h>
#include <string.h>

#include "control-line.h"
#include "target.h"

#define CHECK(claim)                                                    \
    do {                                                                \
        if (!(claim)) {                                                 \
            abort();                                                    \
        }                                                               \
    } while (0)

static void check_text(const char *text, const char *whole, size_t size)
{
    CHECK(text > whole && text <= whole + size);
    CHECK(strlen(text) < size - (text - whole));
    for (; *text; text++) {
        CHECK(*text >= ' ' && *text <= '~' && *text != '"' && *text != '\\');
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct control_line line;
    const char *wrong;
    uint64_t number;
    char *text;

    if (size > CONTROL_MAX_LINE) {
        return 0;
    }
    text = malloc(size + 1);
    CHECK(text);
    memcpy(text, data, size);
    wrong = control_parse(&line, text, size);
    CHECK(!wrong || *wrong);
    CHECK(line.count <= CONTROL_MAX_MEMBERS);
    for (unsigned i = 0; i < line.count; i++) {
        const struct control_member *m = &line.member[i];

        check_text(m->name, text, size);
        if (m->word) {
            check_text(m->word, text, size);
            CHECK(control_word(&line, m->name) == m->word);
            CHECK(!control_number(&line, m->name, 0, UINT64_MAX, &number));
        } else {
            CHECK(control_number(&line, m->name, 0, UINT64_MAX, &number));
            CHECK(number == m->number && !control_word(&line, m->name));
        }
    }
    CHECK(!control_left(&line));
    free(text);
    return 0;
}

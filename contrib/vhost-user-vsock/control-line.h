/*
 * SPDX-License-Identifier: MIT
 *
 * control-line.h: what the owner of the process asks of it: one flat JSON
 * object, of numbers and words.
 */

#ifndef CONTROL_LINE_H
#define CONTROL_LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of a request, its newline included, and members of it. */
#define CONTROL_MAX_LINE 1024u
#define CONTROL_MAX_MEMBERS 16u

struct control_member {
    const char *name;
    const char *word; /* or NULL: it is a number */
    uint64_t number;
    bool taken; /* by those below */
};

struct control_line {
    unsigned count;
    struct control_member member[CONTROL_MAX_MEMBERS];
};

/*
 * Reads it: {"name": "word", "name": 123}, with blanks where JSON allows them.
 * Words have printable ASCII without a quote and a backslash, numbers are whole
 * and fit 64 bits, no name comes twice. The text, of size bytes and one more,
 * is cut into pieces that l points to. NULL, or what is wrong with it.
 */
const char *control_parse(struct control_line *l, char *text, size_t size);

/* The word of that name, NULL if there is none. */
const char *control_word(struct control_line *l, const char *name);
/*
 * The number of that name, from min to max; *value stays where there is none.
 * False: it is a word, or another number.
 */
bool control_number(struct control_line *l, const char *name, uint64_t min,
                    uint64_t max, uint64_t *value);
/* The first that nobody has taken, or NULL. */
const char *control_left(const struct control_line *l);

#endif

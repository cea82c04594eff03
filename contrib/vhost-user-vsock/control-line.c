/*
 * SPDX-License-Identifier: MIT
 *
 * control-line.c: reads a request of the owner. No more of JSON than that
 * needs: nothing nests, so nothing recurses, and nothing is allocated. What is
 * done about it is control.c's business.
 */

#include "control-line.h"

#include <string.h>

static char *skip_blanks(char *p)
{
    return p + strspn(p, " \t\r\n");
}

/* At a quote: cuts the word off, and returns what is behind it, or NULL. */
static char *take_word(char *p, const char **word)
{
    *word = ++p;
    while (*p >= ' ' && *p <= '~' && *p != '"' && *p != '\\') {
        p++;
    }
    if (*p != '"') {
        return NULL;
    }
    *p = 0;
    return p + 1;
}

static char *take_number(char *p, uint64_t *number)
{
    char *start = p;

    *number = 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        unsigned digit = *p - '0';

        if (*number > (UINT64_MAX - digit) / 10) {
            return NULL;
        }
        *number = *number * 10 + digit;
    }
    return p > start ? p : NULL;
}

/* "name": value; what is behind it, or NULL and why not. */
static char *take_member(struct control_line *l, char *p, const char **wrong)
{
    struct control_member *m = &l->member[l->count];

    *wrong = "a name in quotes is missing";
    p = *p == '"' ? take_word(p, &m->name) : NULL;
    if (!p) {
        return NULL;
    }
    for (unsigned i = 0; i < l->count; i++) {
        if (!strcmp(l->member[i].name, m->name)) {
            *wrong = "a name comes twice";
            return NULL;
        }
    }
    p = skip_blanks(p);
    *wrong = "a colon is missing";
    if (*p++ != ':') {
        return NULL;
    }
    p = skip_blanks(p);
    *wrong = "a value is neither a whole number of 64 bits nor a plain word";
    m->word = NULL;
    m->number = 0;
    m->taken = false;
    p = *p == '"' ? take_word(p, &m->word) : take_number(p, &m->number);
    if (p) {
        l->count++;
    }
    return p;
}

const char *control_parse(struct control_line *l, char *text, size_t size)
{
    const char *wrong = NULL;
    char *p = text;

    l->count = 0;
    text[size] = 0;
    if (memchr(text, 0, size)) {
        return "it has a byte 0";
    }
    p = skip_blanks(p);
    if (*p++ != '{') {
        return "it is no JSON object";
    }
    p = skip_blanks(p);
    while (*p != '}') {
        if (l->count == CONTROL_MAX_MEMBERS) {
            return "it has too many members";
        }
        p = take_member(l, p, &wrong);
        if (!p) {
            return wrong;
        }
        p = skip_blanks(p);
        if (*p == ',') {
            p = skip_blanks(p + 1);
            if (*p == '}') {
                return "a member is missing behind a comma";
            }
        } else if (*p != '}') {
            return "a comma or the end is missing";
        }
    }
    return *skip_blanks(p + 1) ? "something is behind its end" : NULL;
}

static struct control_member *find(struct control_line *l, const char *name)
{
    for (unsigned i = 0; i < l->count; i++) {
        if (!strcmp(l->member[i].name, name)) {
            l->member[i].taken = true;
            return &l->member[i];
        }
    }
    return NULL;
}

const char *control_word(struct control_line *l, const char *name)
{
    struct control_member *m = find(l, name);

    return m ? m->word : NULL;
}

bool control_number(struct control_line *l, const char *name, uint64_t min,
                    uint64_t max, uint64_t *value)
{
    struct control_member *m = find(l, name);

    if (!m) {
        return true;
    }
    if (m->word || m->number < min || m->number > max) {
        return false;
    }
    *value = m->number;
    return true;
}

const char *control_left(const struct control_line *l)
{
    for (unsigned i = 0; i < l->count; i++) {
        if (!l->member[i].taken) {
            return l->member[i].name;
        }
    }
    return NULL;
}

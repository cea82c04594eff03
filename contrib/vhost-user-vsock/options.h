/*
 * SPDX-License-Identifier: MIT
 *
 * options.h: what the files that read the command line share. All of them end
 * the program, by wrong(), where a value is no good.
 */

#ifndef OPTIONS_H
#define OPTIONS_H

#include "host.h"

/* main.c: one line about it on stderr, and exit status 2. */

void __attribute__((noreturn, format(printf, 1, 2))) wrong(const char *fmt,
                                                           ...);
/* option is what the user knows the value by: "--guest-cid". */
uint32_t option_number(const char *option, const char *text, uint32_t min,
                       uint32_t max);

/*
 * routes.c: which port is which address. The text is cut into pieces and stays
 * in use.
 */

void route_proxy(struct host_options *o, const char *option, char *text);
void route_listen_port(struct host_options *o, const char *option, char *text);
void route_publish(struct host_options *o, const char *option, char *text);
void route_connect_port(struct host_options *o, const char *option, char *text);
void route_forward_listen(struct host_options *o, const char *option,
                          char *text);
/* When all options are known: completes what was published. */
void routes_complete(struct host_options *o);

#endif

/*
 * SPDX-License-Identifier: MIT
 *
 * vsock-states.h: what calls answer in each state of a socket.
 */
#ifndef VSOCK_STATES_H
#define VSOCK_STATES_H

#include <sys/socket.h>
#include <linux/vm_sockets.h>

/*
 * Prints what each call answers: state is "new", "bound", "listening",
 * "connecting", "ended" (the connect has, and nobody has asked how), "seen"
 * (somebody has), or "full" (connected, and no byte more can be sent).
 */
int vsock_states(const char *state, const struct sockaddr_vm *vm);

#endif

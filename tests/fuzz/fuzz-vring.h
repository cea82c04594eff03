/*
 * SPDX-License-Identifier: MIT
 *
 * fuzz-vring: the calls that the linker's --wrap replaces
 */
#ifndef FUZZ_VRING_H
#define FUZZ_VRING_H

#include "ring.h"

enum ring_result __real_ring_pop(struct ring *r, const struct guest_mem *m,
                                 bool writable, struct ring_chain *c);
enum ring_result __wrap_ring_pop(struct ring *r, const struct guest_mem *m,
                                 bool writable, struct ring_chain *c);
void __real_ring_push(struct ring *r, uint16_t head, uint32_t written);
void __wrap_ring_push(struct ring *r, uint16_t head, uint32_t written);
void __real_ring_unpop(struct ring *r, unsigned n);
void __wrap_ring_unpop(struct ring *r, unsigned n);

#endif

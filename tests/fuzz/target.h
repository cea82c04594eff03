/*
 * SPDX-License-Identifier: MIT
 *
 * The one function of a fuzz target: libFuzzer calls it, or mutate.c
 */
#ifndef FUZZ_TARGET_H
#define FUZZ_TARGET_H

#include <stddef.h>
#include <stdint.h>

/* One input; always returns 0. Aborts when something is wrong. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif /* FUZZ_TARGET_H */

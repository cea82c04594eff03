/*
 * SPDX-License-Identifier: MIT
 *
 * notes.c: why something was refused or cut, as a key in statistics and as
 * words.
 */

#include "core.h"

/* clang-format off */
static const struct {
    const char *name;
    const char *text;
} notes[VSOCK_NOTES] = {
    [VSOCK_NOTE_BAD_SOURCE] = {
        "bad-source", "packet with a foreign source CID" },
    [VSOCK_NOTE_BAD_LENGTH] = {
        "bad-length", "packet with an impossible length" },
    [VSOCK_NOTE_LOST] = {
        "lost", "packet that cannot be read; its connection is reset, "
        "whichever it is" },
    [VSOCK_NOTE_BAD_TYPE] = {
        "bad-type", "packet that is not of a stream socket" },
    [VSOCK_NOTE_BAD_PORT] = {
        "bad-port", "packet with an invalid port" },
    [VSOCK_NOTE_NOT_SERVED] = {
        "not-served", "packet to a CID that is not the parent's" },
    [VSOCK_NOTE_UNKNOWN_TUPLE] = {
        "unknown-tuple", "packet for an unknown connection" },
    [VSOCK_NOTE_TUPLE_REUSED] = {
        "tuple-reused", "second request on an open connection" },
    [VSOCK_NOTE_VIOLATION] = {
        "violation", "packet that its connection does not allow" },
    [VSOCK_NOTE_OVERRUN] = {
        "overrun", "guest sent more than its credit" },
    [VSOCK_NOTE_NO_LISTENER] = {
        "no-listener", "nobody serves the parent's port" },
    [VSOCK_NOTE_TABLE_FULL] = {
        "table-full", "connection table full" },
    [VSOCK_NOTE_NO_MEMORY] = {
        "no-memory", "no memory for a connection's buffer" },
    [VSOCK_NOTE_BACKLOG] = {
        "backlog", "host listener does not accept" },
    [VSOCK_NOTE_BAD_LINE] = {
        "bad-line", "client sent no valid line, or its port is taken" },
    [VSOCK_NOTE_GUEST_REFUSED] = {
        "guest-refused", "guest refused a client's connection" },
    [VSOCK_NOTE_GUEST_SILENT] = {
        "guest-silent", "guest did not answer in time" },
    [VSOCK_NOTE_CLIENT_GONE] = {
        "client-gone", "client left before it was connected" },
    [VSOCK_NOTE_HOST_ERROR] = {
        "host-error", "host end failed" },
    [VSOCK_NOTE_UNDELIVERED] = {
        "undelivered", "host end left bytes of the guest untaken" },
    [VSOCK_NOTE_EVICTED] = {
        "evicted", "host end is cut before it has the guest's last bytes" },
    [VSOCK_NOTE_FAULT] = {
        "fault", "refused or reset by a fault that was asked for" },
};
/* clang-format on */

const char *vsock_note_name(enum vsock_note note)
{
    return notes[note].name;
}

const char *vsock_note_text(enum vsock_note note)
{
    return notes[note].text;
}

void vsock_note(struct vsock *v, enum vsock_note what,
                const struct vsock_conn *c, const struct vsock_hdr *h)
{
    v->stats.notes[what]++;
    port_noted(v, c, what);
    v->ops->note(v->opaque, what, c, h);
}

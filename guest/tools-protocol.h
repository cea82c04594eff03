/*
 * SPDX-License-Identifier: MIT
 *
 * What nitroctl and the agent of `nitroctl run --tools` say to each other; the
 * host's side is python/nitroctl/inside/agent.py and enclaves/cores.py.  No
 * code.
 *
 * The agent
 * ---------
 * It listens on vsock port TOOLS_PORT and serves whoever comes from CID 3, the
 * parent, and nobody else: the parent's end is a unix socket in a folder that
 * only the enclave's user can enter, and that is all the authentication there
 * is.  One connection is one request.
 *
 * Both ways everything is in frames: a u32 length (1..TOOLS_FRAME_MAX), that
 * many bytes, of which the first is the frame's kind.  Integers are little
 * endian.  Whoever gets a frame that is none of these closes the connection.
 *
 * The first frame is the request:
 *
 *   'R'  u16 VERSION, u8 OPERATION, u8 FLAGS, u16 ROWS, u16 COLUMNS, then texts
 *        that end in NUL each: NAME=VALUE for the environment, an empty one,
 *        and the operation's words
 *
 *   operation 'X': run a command in the application's root, as root, with the
 *        application's environment under that of the request.  The first word
 *        is looked up in PATH, and if it is not there, is one of busybox's
 *        applets.  No words: busybox's shell.
 *        flags: 1 a terminal of ROWS and COLUMNS; 2 busybox in any case
 *   operation 'T': processes, in lines as `tools-top.c` says
 *   operation 'C': the clock.  Words: "read"; "set" NS since 1970; "shift" NS;
 *        "rate" PPM, how much faster it runs from now on.  The answer is a line
 *        with the time before and after, in ns since 1970
 *
 * Of a running command, from the host
 *
 *   'i'  bytes for its standard input; the next such frame only after an 'a'
 *   'e'  the end of its standard input; nothing else follows on it
 *   'w'  u16 ROWS, u16 COLUMNS: its terminal's new size
 *   's'  u8 SIGNAL for it and its process group
 *
 * and to the host
 *
 *   'o'  bytes of its standard output; of its terminal; of another answer
 *   'r'  bytes of its standard error
 *   'a'  the bytes of the last 'i' have been taken
 *   'x'  u8 HOW, u8 VALUE: it exited with status VALUE (HOW 0), or died of
 *        signal VALUE (HOW 1).  The last frame; also of other operations
 *   'f'  u32 ERRNO, text: it could not be done.  The last frame, too
 *
 * When the host closes the connection, a command that still runs gets SIGHUP.
 * A request of another VERSION is answered with 'f', EPROTONOSUPPORT.
 *
 * Core dumps
 * ----------
 * For each program that dies of a signal that dumps core, the agent connects
 * to port TOOLS_CORE_PORT of CID 3.  It sends lines "KEY VALUE", then an empty
 * one (all of it at most TOOLS_CORE_HEAD_MAX bytes):
 *
 *   version TOOLS_VERSION
 *   pid N            signal N            program PATH
 *   size N           of the program's file, 0 where it is not sent
 *
 * then the program's file, N bytes, and the core to the end of the stream.  The
 * dead program stays, and so the enclave, until the host has closed its side.
 */

#ifndef NITRO_GUEST_TOOLS_PROTOCOL_H
#define NITRO_GUEST_TOOLS_PROTOCOL_H

#define TOOLS_VERSION 1
#define TOOLS_PORT 4294958296u
#define TOOLS_CORE_PORT 4294958297u
#define TOOLS_FRAME_MAX 65536
#define TOOLS_CORE_HEAD_MAX 8192

#define TOOLS_TTY 1
#define TOOLS_BUSYBOX 2

#endif

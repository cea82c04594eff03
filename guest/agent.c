/* SPDX-License-Identifier: MIT */
/*
 * The test agent: an application for test EIFs that does what a test outside
 * asks for, over vsock.  It carries raw requests to /dev/nsm, tells what the
 * guest looks like, opens and serves vsock streams, and ends the guest in every
 * way that a guest can end.  It judges nothing: answers are facts, the tests
 * outside decide.  It is root in its guest and obeys whoever connects: never put
 * it into an EIF that is more than a test.
 *
 * Started by init as the enclave's application ("/agent [PORT]"), or by the
 * kernel as PID 1 itself (then it mounts /dev, /proc and /sys and sends no
 * heartbeat).  It listens on vsock port 7000, any CID, prints the line
 *
 *     agent: listening on vsock port 7000
 *
 * on the console, and serves each connection in a thread of its own.
 *
 * Frames
 * ------
 * Both ways a frame is a u32 length (little endian, 1..1048576) and that many
 * bytes: one operation byte, then its arguments.  A client sends one frame and
 * reads one answer, as often as it likes; answers come in order.  A length out of
 * range ends the connection.  Integers are little endian.
 *
 *   request                        answer
 *   'N' request bytes              'N' response bytes: one ioctl on /dev/nsm with
 *                                  a response buffer of 0x3000; exactly the bytes
 *                                  that the driver reports.  Empty is allowed (a
 *                                  descriptor of length zero).
 *   'n' u32 CAP, request bytes     'n' response bytes, with a buffer of CAP
 *   'P' NAME ['\n' ARG]...         'P' text, see "Probes"
 *   'X' u8 STATUS                  none; the agent exits with STATUS, so that init
 *                                  ends the guest
 *   'K' u8 SIGNAL                  none; the agent dies of SIGNAL
 *   'Q'                            none; reboot(RB_AUTOBOOT): a machine reset
 *   'H'                            none; reboot(RB_HALT_SYSTEM): CPUs stop
 *   'C'                            none; the kernel panics (sysrq c)
 *
 * A failure is answered with 'E', u32 errno, text.  After X K Q H C the
 * connection just ends.
 *
 * Probes
 * ------
 * Arguments are text, one per line; numbers are decimal or 0x hex.  Answers are
 * text; "key value" lines end in '\n'.  Errors are 'E' frames.
 *
 *   uname                  sysname, release, version, machine: one line each
 *   cmdline                the kernel command line
 *   cpus                   number of CPUs online
 *   mem                    "total KIB", "free KIB", "high KIB" (RAM at or above
 *                          4 GiB of guest address)
 *   id                     "pid N", "ppid N", "sid N", "uid N", "gid N", "cid N"
 *   env                    the environment, one entry per line
 *   args                   argv, one entry per line
 *   cwd                    the working directory
 *   devices                one line per virtio device: NAME ID TRANSPORT DRIVER,
 *                          e.g. "virtio0 19 virtio-mmio.0 vmw_vsock_virtio_transport";
 *                          ID decimal (19 vsock, 33 NSM), "-" without a driver
 *   buses                  "pci N", "block N", "net N": how many devices of each
 *                          (net without lo)
 *   v2                     runs SSE3, SSSE3, SSE4.1, SSE4.2, POPCNT and CMPXCHG16B
 *                          instructions in a child: "sum HEX" of their results;
 *                          E with EILSEQ if the child died of SIGILL
 *   cat PATH               the file's bytes (at most 1 MiB - 1)
 *   ls PATH                its entries, sorted, one per line
 *   write PATH TEXT        writes TEXT to an existing file in one write(2)
 *   exec PROGRAM [ARG]...  runs it: "status N" or "signal N", then its output
 *                          (stdout and stderr)
 *   print TEXT             TEXT and a newline on the console
 *   sleep MS               answers after MS milliseconds
 *   hwrng N                N bytes (1..4096) of /dev/hwrng, in hex
 *   rebind ID              unbinds the virtio device with that id from its driver
 *                          and binds it again: "device NAME", "driver NAME"
 *   nsm-loop THREADS COUNT HEX
 *                          THREADS threads, sharing one descriptor of /dev/nsm,
 *                          send the request HEX COUNT times each: "us N" elapsed,
 *                          "ok N" answers that are not an Error, "errors N"
 *                          {"Error": ...} answers, "failed N" failed ioctls,
 *                          "bytes N" of all answers, "last HEX" one of them
 *
 *   connect CID PORT [MS]  tries to connect (timeout MS, default the kernel's 2 s):
 *                          "errno N" (0: connected), "name TEXT" ("OK",
 *                          "ECONNRESET", "ETIMEDOUT" ...), "us N" it took,
 *                          "port N" own port.  Never an E frame for a refusal.
 *                          The connection is closed again.
 *   dial CID PORT MODE...  connects, runs MODE on the connection, answers with the
 *                          report of MODE
 *   listen PORT MODE...    listens from now on, runs MODE on each connection (a
 *                          thread each), answers "port N" once listening (PORT 0:
 *                          any).  Serves until the guest ends or `unlisten`.
 *   echo-listen PORT       listen PORT echo
 *   unlisten PORT          closes that listener: "port N"
 *   high-source CID PORT SIZE SEED
 *                          dials and sends as `source`, but with MSG_ZEROCOPY out
 *                          of locked pages that all lie at or above 4 GiB of guest
 *                          address (checked in /proc/self/pagemap), so that they
 *                          themselves are in the ring: the report of source and
 *                          "zerocopy N" sends not copied by the kernel, "low-pfn
 *                          HEX" the lowest frame used; E with ENXIO: no such pages
 *
 * Modes (arguments are further lines)
 *
 *   echo                   sends back what comes; at EOF shuts down its sending
 *                          side and closes
 *   sink SEED              reads to EOF and compares with the pattern of SEED
 *   source SIZE SEED [CHUNK]
 *                          sends SIZE bytes of the pattern, CHUNK at a time
 *                          (default 65536), shuts down its sending side (SHUT_WR),
 *                          then reads to EOF
 *   both SIZE SEED [CHUNK] source and sink of the same pattern at the same time
 *   sleep MS               reads nothing for MS milliseconds, then as `count`
 *   count                  reads to EOF, whatever comes
 *   half                   shuts down its sending side first, then as `count`
 *   hold                   never reads, keeps the connection open
 *   drop                   closes at once
 *   pingpong COUNT         sends 1 byte, reads 1 byte, COUNT times; then closes
 *   messages SIZE COUNT    COUNT sends of SIZE bytes of zeros each, then as source
 *
 * A mode's report: "sent N", "received N", "mismatch N" (offset of the first byte
 * that differs from the pattern, -1: none), "errno N" and "name TEXT" (what ended
 * it; 0 "OK" for an orderly end), "us N".  For `dial` it is the probe's answer.
 * For a listener with `sink`, `sleep` or `count`, a peer that shut down its
 * sending side reads the report as text from the connection before it closes.
 *
 * Pattern of SEED (u32): byte i of a stream is block[i mod 65521], where
 *
 *     x = SEED; for k in 0..65520: x = x * 1664525 + 1013904223 (mod 2^32);
 *                                  block[k] = x >> 24
 *
 * 65521 is prime: no buffer size divides it, so a lost or doubled buffer shows.
 */

// SPDX-License-Identifier: MIT

// A parent program in Go, which makes system calls without libc: it asks the
// enclave's port and is asked on one of its own, over unix sockets.
//
//	go build parent.go
//	./parent PATH INTO FROM
//
// PATH is what `nitroctl run` prints behind "vsock", INTO a port on which the
// enclave listens, FROM one of CID 3 that the enclave connects to.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

// In place of vsock.Dial(cid, port).
func dialEnclave(path, port string) (*net.UnixConn, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s\n", port); err != nil {
		return nil, err
	}
	// One byte at a time: what follows the line is the enclave's.
	for b := make([]byte, 1); b[0] != '\n'; {
		if _, err := conn.Read(b); err != nil {
			return nil, fmt.Errorf("nobody listens on port %s: %w", port, err)
		}
	}
	return conn, nil
}

// In place of vsock.Listen(port).
func listenToEnclave(path, port string) (net.Listener, error) {
	name := path + "_" + port
	os.Remove(name)
	return net.Listen("unix", name)
}

func main() {
	if len(os.Args) != 4 {
		log.Fatalf("usage: %s PATH INTO FROM", os.Args[0])
	}
	listener, err := listenToEnclave(os.Args[1], os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	conn, err := dialEnclave(os.Args[1], os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(conn, "hello from the parent")
	conn.CloseWrite()
	io.Copy(os.Stdout, conn)
	conn.Close()
	asked, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}
	io.Copy(os.Stdout, asked)
}

// SPDX-License-Identifier: MIT

//! A parent program in Rust, for any target (musl, static): it asks the
//! enclave's port and is asked on one of its own, over unix sockets.
//!
//!     rustc -O parent.rs
//!     ./parent PATH INTO FROM
//!
//! PATH is what `nitroctl run` prints behind "vsock", INTO a port on which
//! the enclave listens, FROM one of CID 3 that the enclave connects to.

use std::io::{copy, stdout, Error, ErrorKind, Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

/// In place of `VsockStream::connect_with_cid_port`.
fn connect_enclave(path: &str, port: &str) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    write!(stream, "CONNECT {port}\n")?;
    // One byte at a time: what follows the line is the enclave's.
    let mut byte = [0];
    while byte != *b"\n" {
        if stream.read(&mut byte)? == 0 {
            let what = format!("nobody listens on port {port}");
            return Err(Error::new(ErrorKind::ConnectionRefused, what));
        }
    }
    Ok(stream)
}

/// In place of `VsockListener::bind_with_cid_port`.
fn listen_to_enclave(path: &str, port: &str) -> Result<UnixListener> {
    let name = format!("{path}_{port}");
    let _ = std::fs::remove_file(&name);
    UnixListener::bind(name)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, into, from] = &arguments[..] else {
        eprintln!("usage: {} PATH INTO FROM", arguments[0]);
        std::process::exit(2);
    };
    let listener = listen_to_enclave(path, from)?;
    let mut stream = connect_enclave(path, into)?;
    stream.write_all(b"hello from the parent\n")?;
    stream.shutdown(Shutdown::Write)?;
    copy(&mut stream, &mut stdout())?;
    let (mut asked, _) = listener.accept()?;
    copy(&mut asked, &mut stdout())?;
    Ok(())
}

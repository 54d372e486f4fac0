//! The sockets of the ports that one process holds.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::Path,
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use rustix::{
    io::Errno,
    net::{AddressFamily, Shutdown, SocketFlags, SocketType, bind, ipproto, listen, shutdown, socket_with, sockopt},
};

/// The machine's, not a home's: two homes must not have one port. Its byte number `n` is locked by whoever holds the port `n`.
const CLAIMS: &str = "/run/ocore";
const CLAIMS_FILE: &str = "ports";

/// Ports and their sockets. What it holds is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Holder {
    claims: File,
    held: BTreeMap<u16, OwnedFd>,
}

impl Holder {
    pub(super) fn new() -> io::Result<Self> {
        let directory = Path::new(CLAIMS);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        let claims = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(directory.join(CLAIMS_FILE))?;
        Ok(Self { claims, held: BTreeMap::new() })
    }

    /// The socket of a port, bound when it is not held yet. `AddrInUse` when another program, or another oCore of this machine, has the port.
    pub(super) fn hold(&mut self, port: u16) -> io::Result<OwnedFd> {
        if let Some(socket) = self.held.get(&port) {
            return socket.try_clone();
        }
        self.claim(port)?;
        let bound = bind_port(port);
        if bound.is_err() {
            self.give_up(port);
        }
        let socket = bound?;
        let copy = socket.try_clone()?;
        self.held.insert(port, socket);
        Ok(copy)
    }

    /// Whoever listened there does not any more, whether it lives or not; who waited to be let in is refused. The port stays held. Not held is done.
    pub(super) fn quiet(&self, port: u16) -> io::Result<()> {
        let Some(socket) = self.held.get(&port) else { return Ok(()) };
        if !sockopt::socket_acceptconn(socket)? {
            return Ok(());
        }
        match shutdown(socket, Shutdown::Both) {
            // It has just ceased to listen, and is shut for good now, with all whom it will ever let in (`inet_shutdown`). Only the end of listening opens it.
            Err(Errno::NOTCONN) => {
                listen(socket, 0)?;
                Ok(shutdown(socket, Shutdown::Both)?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// The port is anybody's again, once nobody else has its socket. Not held is done.
    pub(super) fn release(&mut self, port: u16) {
        if let Some(socket) = self.held.remove(&port) {
            let _ = shutdown(socket, Shutdown::Both);
            self.give_up(port);
        }
    }

    fn claim(&self, port: u16) -> io::Result<()> {
        self.lock(port, libc::F_WRLCK).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::AddrInUse, "another oCore on this machine has the port"),
            _ => error,
        })
    }

    fn give_up(&self, port: u16) {
        if let Err(error) = self.lock(port, libc::F_UNLCK) {
            tracing::warn!(port, %error, "the claim on a port could not be given up");
        }
    }

    /// fcntl(2), "Open file description locks".
    fn lock(&self, port: u16, kind: libc::c_int) -> io::Result<()> {
        let lock = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: port.into(),
            l_len: 1,
            l_pid: 0,
        };
        fcntl(self.claims.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).map(drop).map_err(io::Error::from)
    }
}

fn bind_port(port: u16) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        process::Command,
    };

    use super::*;

    /// A port that nobody has.
    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn connect(port: u16) -> io::Result<TcpStream> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
    }

    /// Tries all that may be tried as another user; prints what came of each.
    const ATTACK: &str = r#"
import socket, sys
port, won = int(sys.argv[1]), []
for address in ("127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"):
    for reuse_address in (0, 1):
        for reuse_port in (0, 1):
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as attacker:
                attacker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
                attacker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
                try:
                    attacker.bind((address, port))
                    won.append((address, reuse_address, reuse_port))
                except OSError:
                    pass
print(won)
"#;

    fn attack(port: u16) -> String {
        let port = port.to_string();
        let python = ["setpriv", "--reuid=40999", "--regid=40999", "--clear-groups", "/usr/bin/python3", "-c", ATTACK, &port];
        let output = Command::new(python[0]).args(&python[1..]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn nobody_else_gets_a_held_port_whether_somebody_listens_there_or_not_and_it_listens_again_at_once() {
        let mut holder = Holder::new().unwrap();
        let port = free_port();
        let socket = holder.hold(port).unwrap();
        assert_eq!(attack(port), "[]", "before anybody listens");
        // Nobody listens yet, and who will later is heard.
        holder.quiet(port).unwrap();
        for _ in 0..3 {
            listen(&socket, 16).unwrap();
            assert_eq!(attack(port), "[]", "while somebody listens");
            // The server closes first, so that its side waits for the end of the connection.
            let mut client = connect(port).unwrap();
            let listener = TcpListener::from(socket.try_clone().unwrap());
            let (mut server, _) = listener.accept().unwrap();
            server.write_all(b"x").unwrap();
            drop(server);
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            drop(client);
            let waiting = connect(port).unwrap();
            holder.quiet(port).unwrap();
            assert_eq!(connect(port).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            assert_eq!(attack(port), "[]", "after it has listened");
            drop(waiting);
        }
        holder.release(port);
        drop(socket);
        assert_ne!(attack(port), "[]", "the attack works where nobody holds the port");
    }

    #[test]
    fn two_holders_never_have_one_port_and_one_that_another_program_has_is_refused() {
        let (mut one, mut other) = (Holder::new().unwrap(), Holder::new().unwrap());
        let port = free_port();
        let socket = one.hold(port).unwrap();
        one.hold(port).unwrap();
        assert_eq!(other.hold(port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        one.release(port);
        let socket = other.hold(port).unwrap();
        // Whoever serves there outlives the one who held it; the next one holds it again beside.
        listen(&socket, 16).unwrap();
        drop(other);
        one.hold(port).unwrap();
        drop(socket);
        assert_eq!(attack(port), "[]");

        let squatter = TcpListener::bind("0.0.0.0:0").unwrap();
        assert_eq!(one.hold(squatter.local_addr().unwrap().port()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}

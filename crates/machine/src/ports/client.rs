//! How others hold ports: in their own process, or by the keeper.

use std::{
    collections::BTreeMap,
    io::{self, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{
    holder::Holder,
    keeper::{DONE, IN_USE, PATIENCE, Request},
};

const ERROR_LIMIT: u64 = 4096;

/// The ports of a server. Cheap to clone. Its calls take microseconds, and at most some seconds when the keeper does not answer.
#[derive(Debug, Clone)]
pub struct Ports(Way);

#[derive(Debug, Clone)]
enum Way {
    Own(Arc<Mutex<Holder>>),
    Keeper(PathBuf),
}

impl Ports {
    /// Held by this process, and free when it ends. All that ask for one home in one process share them.
    pub fn of_this_process(home: &Path) -> io::Result<Self> {
        static HOLDERS: OnceLock<Mutex<BTreeMap<PathBuf, Arc<Mutex<Holder>>>>> = OnceLock::new();
        let mut holders = HOLDERS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = holders.get(home) {
            return Ok(Self(Way::Own(Arc::clone(holder))));
        }
        let holder = Arc::new(Mutex::new(Holder::new()?));
        holders.insert(home.to_owned(), Arc::clone(&holder));
        Ok(Self(Way::Own(holder)))
    }

    /// Held by the keeper at this socket.
    pub fn kept_at(socket: impl Into<PathBuf>) -> Self {
        Self(Way::Keeper(socket.into()))
    }

    /// The socket of a port on 127.0.0.1, bound and held from now on; the same one for everybody who asks. `AddrInUse` when another program has the port.
    pub fn hold(&self, port: u16) -> io::Result<OwnedFd> {
        match &self.0 {
            Way::Own(holder) => lock(holder).hold(port),
            Way::Keeper(socket) => {
                ask(socket, &Request::Hold(port))?.ok_or_else(|| io::Error::other("the keeper of the ports sent no socket; restart it"))
            }
        }
    }

    /// Nobody listens there any more, whoever has the socket; who waited to be let in is refused. The port stays held. Not held is done.
    pub fn quiet(&self, port: u16) -> io::Result<()> {
        match &self.0 {
            Way::Own(holder) => lock(holder).quiet(port),
            Way::Keeper(socket) => ask(socket, &Request::Quiet(port)).map(drop),
        }
    }

    /// The port is free again, once nobody else has its socket. Not held is done.
    pub fn release(&self, port: u16) -> io::Result<()> {
        match &self.0 {
            Way::Own(holder) => {
                lock(holder).release(port);
                Ok(())
            }
            Way::Keeper(socket) => ask(socket, &Request::Release(port)).map(drop),
        }
    }
}

fn lock(holder: &Mutex<Holder>) -> std::sync::MutexGuard<'_, Holder> {
    holder.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask(socket: &Path, request: &Request) -> io::Result<Option<OwnedFd>> {
    let mut stream = UnixStream::connect(socket).map_err(|error| {
        io::Error::new(error.kind(), format!("the keeper of the ports does not listen at {}; `ocore serve` starts it", socket.display()))
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut sign = [0];
    let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut sign)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the keeper of the ports broke off"));
    }
    let mut sockets = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    let given = sockets.next().and_then(|mut sockets| sockets.next());
    if sign[0] == DONE {
        return Ok(given);
    }
    let mut words = String::new();
    stream.take(ERROR_LIMIT).read_to_string(&mut words)?;
    let kind = if sign[0] == IN_USE { io::ErrorKind::AddrInUse } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, words))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::{super::Keeper, *};

    #[test]
    fn a_keeper_gives_the_same_socket_to_all_and_keeps_it_for_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ports");
        let keeper = Keeper::open(&socket).unwrap();
        std::thread::spawn(move || keeper.serve());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (one, other) = (Ports::kept_at(&socket), Ports::kept_at(&socket));
        let first = one.hold(port).unwrap();
        rustix::net::listen(&first, 4).unwrap();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        // The one who listened is gone; who has come meanwhile is the next one's.
        drop(first);
        let listener = TcpListener::from(other.hold(port).unwrap());
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        other.quiet(port).unwrap();
        assert_eq!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        one.release(port).unwrap();

        let squatter = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(one.hold(squatter.local_addr().unwrap().port()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let nobody = Ports::kept_at(directory.path().join("nobody")).hold(port).unwrap_err();
        assert!(nobody.to_string().contains("`ocore serve` starts it"), "{nobody}");
    }

    #[test]
    fn another_user_is_not_heard() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let socket = directory.path().join("ports");
        let keeper = Keeper::open(&socket).unwrap();
        std::thread::spawn(move || keeper.serve());
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        // As if somebody had given the socket away.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let script =
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b'{\"hold\": 1}\\n'); print(s.recv(1))";
        let python = ["setpriv", "--reuid=40999", "--regid=40999", "--clear-groups", "/usr/bin/python3", "-c", script];
        let output = std::process::Command::new(python[0]).args(&python[1..]).arg(&socket).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(["b''", "reset", "Broken pipe"].iter().any(|end| said.contains(end)), "{said}");
    }
}

//! Whose process is at the other end of a connection on this machine: the kernel is asked (sock_diag(7)), or, where it has no such
//! socket, its tables in `/proc/net` (proc(5)).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `inet_diag_req_v2` and `inet_diag_msg` (linux/inet_diag.h).
const REQUEST_BYTES: u32 = 72;
const HEADER_BYTES: usize = 16;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
/// Where `idiag_uid` is in the answer: behind the header, four bytes, the socket's id (48) and three numbers (12).
const UID_OFFSET: usize = HEADER_BYTES + 4 + 48 + 12;

/// The user of the socket whose own address is `peer` and that is connected to `local`; `None` when it is none of this machine's.
pub(crate) fn uid(peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    match ask(peer, local) {
        Ok(uid) => Some(uid),
        Err(error) => {
            tracing::debug!(%error, "the kernel did not say whose a connection is; its tables are read");
            read_tables(peer, local)
        }
    }
}

fn ask(peer: SocketAddr, local: SocketAddr) -> io::Result<u32> {
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let mut request = Vec::with_capacity(REQUEST_BYTES as usize);
    request.extend(REQUEST_BYTES.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    let family = if peer.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
    request.extend([family as u8, IPPROTO_TCP, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(peer.port().to_be_bytes());
    request.extend(local.port().to_be_bytes());
    request.extend(address_bytes(peer.ip()));
    request.extend(address_bytes(local.ip()));
    // Any interface, any cookie.
    request.extend(0_u32.to_ne_bytes());
    request.extend([0xff; 8]);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0_u8; 512];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if kind != SOCK_DIAG_BY_FAMILY || length < UID_OFFSET + 4 {
        return Err(io::Error::other("the kernel does not know the connection"));
    }
    let uid: [u8; 4] = answer[UID_OFFSET..UID_OFFSET + 4].try_into().map_err(io::Error::other)?;
    Ok(u32::from_ne_bytes(uid))
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn read_tables(peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|path| find_line(&std::fs::read_to_string(path).ok()?, peer, local))
}

/// Lines are `  0: 0100007F:A3F1 0100007F:0A21 01 00000000:00000000 00:00000000 00000000  1000 …`.
fn find_line(table: &str, peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    let (peers, locals) = (written(peer), written(local));
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (from, to) = (words.next()?, words.next()?);
        (peers.iter().any(|peer| peer == from) && locals.iter().any(|local| local == to)).then(|| words.nth(4)?.parse().ok()).flatten()
    })
}

/// An address as the tables write it, plain and mapped into IPv6: each group of four bytes as the machine's own number.
fn written(address: SocketAddr) -> Vec<String> {
    let hex = |bytes: &[u8]| -> String {
        let groups: Vec<String> =
            bytes.chunks(4).map(|group| format!("{:08X}", u32::from_ne_bytes([group[0], group[1], group[2], group[3]]))).collect();
        groups.concat()
    };
    let port = address.port();
    match address.ip() {
        IpAddr::V4(ip) => vec![format!("{}:{port:04X}", hex(&ip.octets())), format!("{}:{port:04X}", hex(&ip.to_ipv6_mapped().octets()))],
        IpAddr::V6(ip) => vec![format!("{}:{port:04X}", hex(&ip.octets()))],
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn both_ways_tell_whose_a_connection_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, local) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let own = nix::unistd::geteuid().as_raw();
        assert_eq!(uid(peer, local), Some(own));
        assert_eq!(read_tables(peer, local), Some(own));
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(uid(nobody, local), None);
    }
}

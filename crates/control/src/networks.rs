//! Which addresses the server may contact because somebody who is not its operator says so.
//!
//! Whoever names an address (a repository, a submodule) would otherwise reach what only the server can reach: its own ports, the operator's
//! network, a cloud's metadata. So only the public Internet counts as reachable; the rest is closed until the operator opens a network.
//! The tables are the IANA IPv4 and IPv6 Special-Purpose Address Registries, and what clouds serve metadata at beside them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// What an address is that is none of the public Internet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    /// This machine, its link, or a cloud's metadata service.
    Local,
    /// Somebody's own network.
    Private,
    /// Set aside for a purpose that no server on the Internet has.
    Reserved,
}

impl Special {
    /// After "is".
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Local => "an address of this machine or its link",
            Self::Private => "an address of a private network",
            Self::Reserved => "an address that is set aside for special purposes",
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const SPECIAL_V4: [(Ipv4Net, Special); 20] = [
    (v4(0, 0, 0, 0, 8), Special::Local),
    (v4(127, 0, 0, 0, 8), Special::Local),
    (v4(169, 254, 0, 0, 16), Special::Local),
    // Multicast reaches the link; so does the broadcast address.
    (v4(224, 0, 0, 0, 4), Special::Local),
    (v4(255, 255, 255, 255, 32), Special::Local),
    // Metadata of Alibaba, Oracle and Azure.
    (v4(100, 100, 100, 200, 32), Special::Local),
    (v4(192, 0, 0, 192, 32), Special::Local),
    (v4(168, 63, 129, 16, 32), Special::Local),
    (v4(10, 0, 0, 0, 8), Special::Private),
    (v4(172, 16, 0, 0, 12), Special::Private),
    (v4(192, 168, 0, 0, 16), Special::Private),
    // Between a carrier and its customers (RFC 6598); overlay networks use it as well.
    (v4(100, 64, 0, 0, 10), Special::Private),
    (v4(192, 0, 0, 0, 24), Special::Reserved),
    (v4(192, 0, 2, 0, 24), Special::Reserved),
    (v4(192, 31, 196, 0, 24), Special::Reserved),
    (v4(192, 88, 99, 0, 24), Special::Reserved),
    (v4(198, 18, 0, 0, 15), Special::Reserved),
    (v4(198, 51, 100, 0, 24), Special::Reserved),
    (v4(203, 0, 113, 0, 24), Special::Reserved),
    (v4(240, 0, 0, 0, 4), Special::Reserved),
];

/// What an address is; `None` for one of the public Internet.
pub(crate) fn special(address: IpAddr) -> Option<Special> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => special_v4(inner).or_else(|| special_v6(address)),
            None => special_v6(address),
        },
    }
}

fn special_v4(address: Ipv4Addr) -> Option<Special> {
    SPECIAL_V4.iter().find(|(network, _)| network.contains(&address)).map(|(_, special)| *special)
}

fn special_v6(address: Ipv6Addr) -> Option<Special> {
    let segments = address.segments();
    let aws_metadata = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    let google_metadata = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);
    // Mapped, and translated by NAT64 (RFC 6052): the IPv4 address inside was judged already.
    if segments[..6] == [0, 0, 0, 0, 0, 0xffff] || segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        return None;
    }
    if address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || address == aws_metadata
        || address == google_metadata
    {
        return Some(Special::Local);
    }
    // fc00::/7, and fec0::/10, which was for the same.
    if segments[0] & 0xfe00 == 0xfc00 || segments[0] & 0xffc0 == 0xfec0 {
        return Some(Special::Private);
    }
    // Everything that is assigned lies in 2000::/3; of that not: 2001::/23 (protocols, Teredo among them), 2001:db8::/32 and 3fff::/20
    // (documentation), 2002::/16 (6to4).
    let is_global = segments[0] & 0xe000 == 0x2000
        && !(segments[0] == 0x2001 && (segments[1] < 0x200 || segments[1] == 0xdb8))
        && segments[0] != 0x2002
        && !(segments[0] == 0x3fff && segments[1] < 0x1000);
    (!is_global).then_some(Special::Reserved)
}

/// The IPv4 address that an IPv6 address leads to: mapped, compatible, NAT64 (also with a prefix of one's own, RFC 8215), 6to4, Teredo, ISATAP.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let of = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0 | 1, _, _, _, high, low]
        | [0x2002, high, low, _, _, _, _, _]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => of(high, low),
        // The client's address is written inverted (RFC 4380, 4).
        [0x2001, 0, _, _, _, _, high, low] => of(!high, !low),
        _ => None,
    }
}

/// Whether the operator has opened a network that the address lies in, in whatever dress it comes.
pub(crate) fn is_among(address: IpAddr, networks: &[IpNet]) -> bool {
    let inner = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => embedded(address).map(IpAddr::V4),
    };
    networks.iter().any(|network| network.contains(&address) || inner.is_some_and(|inner| network.contains(&inner)))
}

/// This machine, its link or a cloud's metadata, in whatever dress: what not even an environment may be opened to.
pub(crate) fn is_local(address: IpAddr) -> bool {
    special(address) == Some(Special::Local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str) -> Option<Special> {
        special(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_this_machine_are_known_in_every_dress() {
        for local in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::a9fe:a9fe",
            "::127.0.0.1",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
            "2001:0:1234::5601:5601",
            "2a01:4f8::200:5efe:169.254.169.254",
            "fd00:ec2::254",
            "fd20:ce::254",
        ] {
            assert_eq!(judge(local), Some(Special::Local), "{local}");
        }
    }

    #[test]
    fn private_and_reserved_addresses_are_no_part_of_the_internet() {
        for private in [
            "10.0.0.5",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "fc00::1",
            "fdab::1",
            "fec0::1",
            "::ffff:10.0.0.5",
            "64:ff9b::10.0.0.5",
            "2002:c0a8:0101::1",
            "::192.168.1.1",
        ] {
            assert_eq!(judge(private), Some(Special::Private), "{private}");
        }
        for reserved in [
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "240.0.0.1",
            "192.88.99.1",
            "2001:db8::1",
            "3fff:1::1",
            "2001::1",
            "2001:2::1",
            "100::1",
            "5f00::1",
            "4000::1",
            "2002:808:808::1",
            "::8.8.8.8",
            "64:ff9b:1::8.8.8.8",
        ] {
            assert_eq!(judge(reserved), Some(Special::Reserved), "{reserved}");
        }
    }

    #[test]
    fn the_internet_is_open_also_where_a_nat_translates() {
        for public in [
            "1.1.1.1",
            "11.0.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "100.128.0.1",
            "198.20.0.1",
            "223.255.255.1",
            "2606:4700::1111",
            "2a01:4f8::1",
            "::ffff:8.8.8.8",
            "64:ff9b::140.82.121.3",
            "2001:200::1",
        ] {
            assert_eq!(judge(public), None, "{public}");
        }
    }

    #[test]
    fn what_the_operator_opens_is_open_in_every_dress() {
        let networks: Vec<IpNet> = ["10.1.0.0/16", "fd00:1::/32"].iter().map(|text| text.parse().unwrap()).collect();
        for open in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fd00:1::7"] {
            assert!(is_among(open.parse().unwrap(), &networks), "{open}");
        }
        for closed in ["10.2.0.1", "::ffff:10.2.0.1", "fd00:2::1", "127.0.0.1"] {
            assert!(!is_among(closed.parse().unwrap(), &networks), "{closed}");
        }
    }
}

//! Which of this machine's addresses the others can reach.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};

/// This machine's name.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_string()
}

/// The address of this machine from which the machines called `peers` are reached; the loopback address
/// when they all are this one. `None` when their names lead nowhere.
pub fn interface_towards(peers: &[String]) -> Option<IpAddr> {
    towards(&host_name(), peers, |name| {
        // The port is never used; there must be one.
        (name, 9).to_socket_addrs().map(|all| all.map(|a| a.ip()).collect()).unwrap_or_default()
    })
}

/// Names that are looked up before giving up: each may take a resolver's time-out.
const NAMES: usize = 8;

fn towards(own: &str, peers: &[String], resolve: impl Fn(&str) -> Vec<IpAddr>) -> Option<IpAddr> {
    let mut others: Vec<&str> = Vec::new();
    for peer in peers {
        if peer != own && others.len() < NAMES && !others.contains(&peer.as_str()) {
            others.push(peer);
        }
    }
    if others.is_empty() {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    // Own names often stand for a loopback address, which no other machine reaches. They are the last
    // resort, for machines that do not know each other's names.
    let names = others.into_iter().chain([own]);
    names.flat_map(resolve).filter(|ip| !ip.is_loopback()).find_map(local_address)
}

/// The local end of a way to `peer`. Nothing is sent: connecting a datagram socket only chooses the way.
fn local_address(peer: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((peer, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    // An IPv6 address of one link only is of no use without the link's name.
    let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    (!ip.is_unspecified() && !ip.is_loopback() && !link_local).then_some(ip)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|s| (*s).to_string()).collect()
    }

    #[test]
    fn one_machine_needs_no_name() {
        let nobody = |_: &str| -> Vec<IpAddr> { unreachable!("no name is looked up") };
        let loopback = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(towards("a", &[], nobody), loopback);
        assert_eq!(towards("a", &names(&["a", "a"]), nobody), loopback);
        assert_eq!(interface_towards(&[host_name()]), loopback);
    }

    #[test]
    fn names_that_lead_nowhere_or_back_are_no_way() {
        let asked = RefCell::new(Vec::new());
        let back = |name: &str| {
            asked.borrow_mut().push(name.to_string());
            vec![IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1))]
        };
        assert_eq!(towards("a", &names(&["a", "b", "b", "c"]), back), None);
        assert_eq!(*asked.borrow(), ["b", "c", "a"]);
        let many: Vec<String> = (0..1000).map(|n| format!("n{n}")).collect();
        asked.borrow_mut().clear();
        assert_eq!(towards("a", &many, back), None);
        assert_eq!(asked.borrow().len(), NAMES + 1);
        assert_eq!(towards("a", &names(&["b"]), |_| Vec::new()), None);
    }

    #[test]
    fn the_way_to_a_far_address_starts_at_one_of_this_machine_s() {
        // From the range for documentation: wherever a default route is, it leads there.
        let far = |_: &str| vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))];
        if let Some(ip) = towards("a", &names(&["b"]), far) {
            assert!(!ip.is_loopback() && !ip.is_unspecified());
            UdpSocket::bind((ip, 0)).expect("an address of this machine");
        }
    }
}

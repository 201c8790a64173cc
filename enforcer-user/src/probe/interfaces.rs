//! What can be attached to each interface, and who else is there.

use std::{ffi::CStr, io, os::fd::AsRawFd};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{Check, bpf::root_cause};
use crate::{
    config::{AUTO, Config, Xdp},
    link_net::{self, Interface},
};

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let present = match link_net::list() {
        Ok(present) => present,
        Err(error) => {
            return vec![Check::unknown("interfaces", format!("cannot list them: {error}"), "run as root")];
        }
    };
    let datapath = &config.datapath;
    if datapath.interfaces.iter().any(|name| name == AUTO) {
        let present_names = present.iter().filter(|interface| interface.name != datapath.tap);
        return present_names.map(|found| interface(&found.name, &present, true, datapath.xdp)).collect();
    }
    let named = datapath.interfaces.iter().map(|name| interface(name, &present, false, datapath.xdp));
    let above = present.iter().filter_map(|upper| unnamed_above(upper, &present, &datapath.interfaces));
    named.chain(above).collect()
}

/// An interface on top of a named one that is not named itself: what passes it is judged nowhere.
fn unnamed_above(upper: &Interface, present: &[Interface], named: &[String]) -> Option<Check> {
    let lower = present.iter().find(|other| Some(other.index) == upper.lower && named.contains(&other.name))?;
    let by_itself = ["vlan", "macvlan", "macvtap"].iter().any(|kind| upper.is_a(kind));
    if named.contains(&upper.name) || !by_itself {
        return None;
    }
    Some(Check::limited(
        &format!("interface {}", upper.name),
        format!("{} on {}, not among `datapath.interfaces`", upper.kind.name(), lower.name),
        "its packets are not enforced, nor are they at the interface below",
        &format!("add {:?} to `datapath.interfaces`, or write [\"auto\"]", upper.name),
    ))
}

/// A port, whose packets are judged at its master.
fn port(title: &str, port: &Interface, present: &[Interface], auto: bool) -> Option<Check> {
    let master = port.port_of()?;
    let name = present.iter().find(|other| other.index == master.index).map_or("its master", |found| &found.name);
    let found = format!("port of {} {name}", master.kind);
    if auto {
        return Some(Check::ok(title, format!("{found}, where its packets are judged; only PUs of its own here")));
    }
    let cost = "the enforcer does not start: packets would be judged twice, or not at all";
    Some(Check::missing(title, found, cost, &format!("name {name} in `datapath.interfaces` instead")))
}

fn interface(name: &str, present: &[Interface], auto: bool, xdp: Xdp) -> Check {
    let title = format!("interface {name}");
    let Some(found) = present.iter().find(|other| other.name == name) else {
        let cost = "its traffic is not enforced until it comes";
        return Check::limited(&title, "does not exist", cost, "correct `datapath.interfaces`");
    };
    if let Some(check) = port(&title, found, present, auto) {
        return check;
    }
    let driver = driver(name);
    let kind = match &driver {
        Ok(driver) if driver.is_physical() => format!("{} (physical)", driver.name),
        Ok(driver) => format!("{} (virtual)", driver.name),
        Err(_) => "no driver".into(),
    };
    let shield = shield(xdp, driver.as_ref().ok());
    let (found, others) = match strangers(name) {
        Ok(others) => (format!("{kind}; tcx; XDP {shield}"), others),
        Err(error) if is_permission(&error) => {
            return Check::unknown(
                &title,
                format!("{kind}; cannot ask for its programs: {}", root_cause(&error)),
                "run as root",
            );
        }
        Err(_) => (format!("{kind}; TC filters, no tcx; XDP {shield}"), Vec::new()),
    };
    if others.is_empty() {
        return Check::ok(&title, found);
    }
    Check::limited(
        &title,
        format!("{found}; other programs: {}", others.join(", ")),
        "one that runs earlier may let packets pass unseen or change them",
        "look at them with `bpftool net`; order them with their owner's settings",
    )
}

/// How `datapath.xdp` applies; whether a driver's native mode works is known when it is attached (`enforcer status`).
fn shield(xdp: Xdp, driver: Option<&Driver>) -> &'static str {
    let physical = driver.is_some_and(Driver::is_physical);
    match xdp {
        Xdp::Off => "off",
        Xdp::Generic => "generic",
        Xdp::Native => "native",
        Xdp::Auto if physical => "native if the driver can",
        Xdp::Auto => "off (auto: not on virtual interfaces)",
    }
}

fn is_permission(error: &aya::programs::ProgramError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        let denied = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
        if error.downcast_ref::<io::Error>().is_some_and(denied) {
            return true;
        }
        source = error.source();
    }
    false
}

/// tcx programs that are not the enforcer's.
fn strangers(interface: &str) -> Result<Vec<String>, aya::programs::ProgramError> {
    let mut names = Vec::new();
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, programs) = SchedClassifier::query_tcx(interface, direction)?;
        for program in programs {
            let name = program.name_as_str().unwrap_or("unnamed").to_owned();
            if !crate::load::PROGRAMS.contains(&name.as_str()) {
                names.push(format!("{name} (id {})", program.id()));
            }
        }
    }
    Ok(names)
}

struct Driver {
    name: String,
    /// Where on a bus the device is; empty for what exists in software only.
    bus: String,
}

impl Driver {
    fn is_physical(&self) -> bool {
        !self.bus.is_empty() && !matches!(self.bus.as_str(), "N/A" | "tun" | "tap")
    }
}

/// Asks by ioctl, which unlike /sys/class/net answers for the network namespace of the caller.
fn driver(interface: &str) -> io::Result<Driver> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, ..DriverInfo::default() };
    // SAFETY: all bytes zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the request names an interface and points to an ethtool_drvinfo, which SIOCETHTOOL with GDRVINFO fills.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Driver { name: text(&info.driver), bus: text(&info.bus_info) })
}

/// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x3;

/// `struct ethtool_drvinfo` (linux/ethtool.h).
#[repr(C)]
#[derive(Default)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus_info: [u8; 32],
    extended_rom: [u8; 32],
    reserved: [u8; 12],
    numbers: [u32; 5],
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        link_net::{Kind, Master},
        probe::State,
    };

    #[test]
    fn the_kernels_structure_has_its_size() {
        assert_eq!(size_of::<DriverInfo>(), 196);
    }

    #[test]
    fn a_missing_interface_is_named() {
        let check = interface("nosuch0", &[], true, Xdp::Auto);
        assert_eq!((check.state, check.found.as_str()), (State::Limited, "does not exist"));
    }

    fn made(index: u32, name: &str, kind: &str) -> Interface {
        let kind = Kind::Virtual(kind.into());
        Interface {
            index,
            name: name.into(),
            kind,
            mtu: 1500,
            address: [0; 6],
            up: true,
            master: None,
            lower: None,
            peer_namespace: None,
        }
    }

    #[test]
    fn a_port_is_fine_unless_named() {
        let master = Some(Master { index: 2, kind: "bridge".into() });
        let present = [made(2, "br9", "bridge"), Interface { master, ..made(3, "p9", "veth") }];
        let auto = interface("p9", &present, true, Xdp::Auto);
        assert_eq!(auto.state, State::Ok);
        assert!(auto.found.starts_with("port of bridge br9, where"), "{}", auto.found);
        let named = interface("p9", &present, false, Xdp::Auto);
        assert_eq!((named.state, named.remedy.as_str()), (State::Missing, "name br9 in `datapath.interfaces` instead"));
    }

    #[test]
    fn what_lies_on_a_named_interface_must_be_named_too() {
        let vlan = Interface { lower: Some(2), ..made(3, "e.7", "vlan") };
        let present = [made(2, "e", "veth"), vlan.clone()];
        let check = unnamed_above(&vlan, &present, &["e".into()]).unwrap();
        assert_eq!((check.state, check.found.as_str()), (State::Limited, "vlan on e, not among `datapath.interfaces`"));
        assert!(unnamed_above(&vlan, &present, &["e".into(), "e.7".into()]).is_none());
        assert!(unnamed_above(&vlan, &present, &["e.7".into()]).is_none());
    }

    #[test]
    fn auto_spares_virtual_interfaces() {
        let physical = Driver { name: "ixgbe".into(), bus: "0000:01:00.0".into() };
        let virtual_ = Driver { name: "veth".into(), bus: String::new() };
        assert_eq!(shield(Xdp::Auto, Some(&physical)), "native if the driver can");
        assert!(shield(Xdp::Auto, Some(&virtual_)).starts_with("off"));
        assert!(shield(Xdp::Auto, None).starts_with("off"));
    }
}

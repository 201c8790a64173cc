//! What can be attached to each interface, and who else is there.

use std::{ffi::CStr, io, os::fd::AsRawFd};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::{
    net::if_::if_nameindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{Check, bpf::root_cause};
use crate::config::{AUTO, Config, Xdp};

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let present = match if_nameindex() {
        Ok(list) => list.iter().filter_map(|entry| Some(entry.name().to_str().ok()?.to_owned())).collect(),
        Err(error) => {
            return vec![Check::unknown("interfaces", format!("cannot list them: {error}"), "run as root")];
        }
    };
    let present: Vec<String> = present;
    let datapath = &config.datapath;
    let wanted: Vec<&String> = if datapath.interfaces.iter().any(|name| name == AUTO) {
        present.iter().filter(|name| **name != datapath.tap).collect()
    } else {
        datapath.interfaces.iter().collect()
    };
    wanted.into_iter().map(|name| interface(name, &present, datapath.xdp)).collect()
}

fn interface(name: &str, present: &[String], xdp: Xdp) -> Check {
    let title = format!("interface {name}");
    if !present.iter().any(|other| other == name) {
        let cost = "its traffic is not enforced until it comes";
        return Check::limited(&title, "does not exist", cost, "correct `datapath.interfaces`");
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
            if !OWN.contains(&name.as_str()) {
                names.push(format!("{name} (id {})", program.id()));
            }
        }
    }
    Ok(names)
}

/// Names of the enforcer's own TC programs, as the kernel keeps them.
const OWN: &[&str] = &["tc_ingress", "tc_egress", "tc_pu_ingress", "tc_pu_egress", "tap_inject"];

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

    #[test]
    fn the_kernels_structure_has_its_size() {
        assert_eq!(size_of::<DriverInfo>(), 196);
    }

    #[test]
    fn a_missing_interface_is_named() {
        let check = interface("nosuch0", &["lo".into()], Xdp::Auto);
        assert_eq!((check.state, check.found.as_str()), (super::super::State::Limited, "does not exist"));
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

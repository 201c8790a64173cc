//! The programs of one interface: which, in what order, and whether XDP.
//!
//! Our programs stand first in each chain, so that none of somebody else's can let a packet pass unseen, and they go on to
//! the next program (`TCX_NEXT`) where they have no objection. Seen from a PU behind its own interface, its way out is
//! `tc_pu_ingress` then `tc_ingress`, its way in `tc_egress` then `tc_pu_egress`. At a port of a bridge or bond, whose
//! master has `tc_ingress` and `tc_egress`, `tc_port_ingress` and `tc_port_egress` stand in their place.

use aya::programs::links::FdLink;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpMode as Mode;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp};

use super::links::{self, Place, Placed};
use super::{Kernel, LoadError, XdpMode, clsact};
use crate::link_net::{Interface, Kind};
use crate::sys;

/// What XDP does at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XdpState {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
    /// Nothing, and why.
    Off(String),
}

/// A TC program and its place in a chain.
pub(super) struct Chain {
    pub(super) program: &'static str,
    pub(super) direction: TcAttachType,
    /// Order among clsact filters, lowest first.
    pub(super) priority: u16,
    /// Program it must stand behind.
    behind: Option<&'static str>,
}

pub(super) const PU_INGRESS: Chain =
    Chain { program: "tc_pu_ingress", direction: TcAttachType::Ingress, priority: 1, behind: None };
pub(super) const INGRESS: Chain =
    Chain { program: "tc_ingress", direction: TcAttachType::Ingress, priority: 2, behind: Some("tc_pu_ingress") };
pub(super) const EGRESS: Chain =
    Chain { program: "tc_egress", direction: TcAttachType::Egress, priority: 1, behind: None };
pub(super) const PU_EGRESS: Chain =
    Chain { program: "tc_pu_egress", direction: TcAttachType::Egress, priority: 2, behind: Some("tc_egress") };
/// At a port instead of [`INGRESS`], where a PU is behind it.
pub(super) const PORT_INGRESS: Chain =
    Chain { program: "tc_port_ingress", direction: TcAttachType::Ingress, priority: 3, behind: Some("tc_pu_ingress") };
/// At a port instead of [`EGRESS`].
pub(super) const PORT_EGRESS: Chain =
    Chain { program: "tc_port_egress", direction: TcAttachType::Egress, priority: 4, behind: None };
/// Where another enforced interface lies below.
pub(super) const STACK_EGRESS: Chain =
    Chain { program: "tc_stack_egress", direction: TcAttachType::Egress, priority: 3, behind: Some("tc_egress") };
/// All that may be at an interface other than the TAP.
pub(super) const CHAINS: [&Chain; 7] =
    [&PU_INGRESS, &INGRESS, &PORT_INGRESS, &EGRESS, &PORT_EGRESS, &STACK_EGRESS, &PU_EGRESS];

impl Chain {
    /// Whether it is there only where a PU is behind the interface.
    pub(super) fn is_of_pu(&self) -> bool {
        [PU_INGRESS, PU_EGRESS, PORT_INGRESS].iter().any(|of_pu| of_pu.program == self.program)
    }
}

pub(super) const TAP_INGRESS: Chain =
    Chain { program: "tap_inject", direction: TcAttachType::Ingress, priority: 1, behind: None };

/// Name of the pin of a program at an interface; a bpffs takes no dots, so it is the index, not the name.
pub(super) fn pin_name(program: &str, index: u32) -> String {
    format!("{program}_if{index}")
}

/// Program and interface index of such a name.
pub(super) fn split_pin_name(name: &str) -> Option<(&str, u32)> {
    let (program, index) = name.rsplit_once("_if")?;
    Some((program, index.parse().ok()?))
}

impl Kernel {
    /// Puts a TC program into its place.
    pub(super) fn place_tc(&mut self, chain: &Chain, interface: &Interface) -> Result<Placed, LoadError> {
        let (links, marks, by_clsact) = (self.pins.links.clone(), self.pins.clsact.clone(), self.clsact);
        let program: &mut SchedClassifier = self.program(chain.program)?;
        if by_clsact {
            return clsact::place(&marks, program, chain.program, interface, chain.direction, chain.priority);
        }
        let failed = |error: &dyn std::error::Error| LoadError::Attach {
            program: chain.program,
            place: interface.name.clone(),
            reason: format!("tcx: {}", causes(error)),
        };
        let fd =
            program.fd().and_then(|fd| fd.try_clone().map_err(ProgramError::from)).map_err(|error| failed(&error))?;
        let place = Place { kind: sys::LINK_TCX, target: u64::from(interface.index) };
        links::place(
            &links.join(pin_name(chain.program, interface.index)),
            place,
            std::os::fd::AsFd::as_fd(&fd),
            || {
                let before = chain.behind.and_then(|other| links::live(&links.join(pin_name(other, interface.index))));
                let order = match before.and_then(|link| SchedClassifierLink::try_from(link).ok()) {
                    Some(link) => {
                        LinkOrder::after_link(&link).map_err(|error| failed(&error)).map(|order| (order, Some(link)))
                    }
                    None => Ok((LinkOrder::first(), None)),
                };
                // The link must live until the kernel has looked at its descriptor.
                let (order, _before) = order?;
                program
                    .attach_with_options(&interface.name, chain.direction, TcAttachOptions::TcxOrder(order))
                    .and_then(|link| program.take_link(link))
                    .map_err(|error| failed(&error))
                    .and_then(|link| FdLink::try_from(link).map_err(|error| failed(&error)))
            },
        )
    }

    /// Takes a TC program away.
    pub(super) fn displace_tc(&self, chain: &Chain, index: u32, name: &str) -> Result<bool, LoadError> {
        let by_clsact = self.clsact && clsact::is_marked(&self.pins.clsact, index);
        if by_clsact && clsact::remove(name, chain.direction, chain.priority) {
            return Ok(true);
        }
        links::remove(&self.pins.links.join(pin_name(chain.program, index)))
    }

    /// Takes XDP away.
    pub(super) fn displace_xdp(&self, index: u32) -> Result<(), LoadError> {
        for program in ["xdp_native", "xdp_generic"] {
            links::remove(&self.pins.links.join(pin_name(program, index)))?;
        }
        Ok(())
    }

    /// Puts XDP where the mode wants it, or takes it away.
    pub(super) fn place_xdp(&mut self, interface: &Interface) -> Result<XdpState, LoadError> {
        let native = self.pins.links.join(pin_name("xdp_native", interface.index));
        let generic = self.pins.links.join(pin_name("xdp_generic", interface.index));
        let (mode, pin, other, state) = match wanted_xdp(self.xdp, interface) {
            Ok(Mode::Skb) => (Mode::Skb, generic, native, XdpState::Generic),
            Ok(mode) => (mode, native, generic, XdpState::Native),
            Err(reason) => {
                links::remove(&native)?;
                links::remove(&generic)?;
                return Ok(XdpState::Off(reason));
            }
        };
        // The kernel allows one mode at a time.
        links::remove(&other)?;
        let program: &mut Xdp = self.program("xdp_shield")?;
        let failed = |error: &dyn std::error::Error| LoadError::Attach {
            program: "xdp_shield",
            place: interface.name.clone(),
            reason: causes(error),
        };
        let fd =
            program.fd().and_then(|fd| fd.try_clone().map_err(ProgramError::from)).map_err(|error| failed(&error))?;
        let place = Place { kind: sys::LINK_XDP, target: u64::from(interface.index) };
        let placed = links::place(&pin, place, std::os::fd::AsFd::as_fd(&fd), || {
            program
                .attach_to_if_index(interface.index, mode)
                .and_then(|link| program.take_link(link))
                .map_err(|error| failed(&error))
                .and_then(|link| FdLink::try_from(link).map_err(|error| failed(&error)))
        });
        match placed {
            Ok(_) => Ok(state),
            // TC decides in any case: without XDP the host is slower under attack, not less safe.
            Err(error @ LoadError::Attach { .. }) => {
                tracing::warn!(interface = interface.name, %error, "no XDP here");
                Ok(XdpState::Off(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}

/// Where to attach XDP, or why not.
fn wanted_xdp(mode: XdpMode, interface: &Interface) -> Result<Mode, String> {
    match (mode, &interface.kind) {
        (XdpMode::Off, _) => Err("switched off".to_owned()),
        (XdpMode::Auto, Kind::Physical(_)) => Ok(Mode::Driver),
        (XdpMode::Auto, kind) => Err(format!("{} interface: native XDP would cost more than it saves", kind.name())),
        (XdpMode::Native, Kind::Loopback) => Err("the loopback has no native XDP".to_owned()),
        (XdpMode::Native, _) => Ok(Mode::Driver),
        (XdpMode::Generic, _) => Ok(Mode::Skb),
    }
}

/// An error with all its sources.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names_can_be_taken_apart() {
        assert_eq!(split_pin_name(&pin_name("tc_ingress", 17)), Some(("tc_ingress", 17)));
        assert_eq!(split_pin_name("sock_ops"), None);
        assert_eq!(split_pin_name("x_ifx"), None);
    }

    #[test]
    fn auto_is_native_on_physical_interfaces_only() {
        let interface = |kind| Interface {
            index: 1,
            name: "x".into(),
            kind,
            mtu: 1500,
            address: [0; 6],
            up: true,
            master: None,
            lower: None,
            peer_namespace: None,
        };
        let physical = interface(Kind::Physical("0000:00:03.0".into()));
        assert_eq!(wanted_xdp(XdpMode::Auto, &physical), Ok(Mode::Driver));
        for kind in
            [Kind::Loopback, Kind::Virtual("veth".into()), Kind::Virtual("bridge".into()), Kind::Virtual("".into())]
        {
            let other = interface(kind);
            assert!(wanted_xdp(XdpMode::Auto, &other).unwrap_err().contains(other.kind.name()));
            assert_eq!(wanted_xdp(XdpMode::Generic, &other), Ok(Mode::Skb));
        }
        assert_eq!(wanted_xdp(XdpMode::Native, &interface(Kind::Virtual("veth".into()))), Ok(Mode::Driver));
        assert!(wanted_xdp(XdpMode::Off, &physical).is_err());
    }
}

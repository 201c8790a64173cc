//! Which programs are at which interface, and how that follows the interfaces as they come, change and go.

use super::interface::{
    CHAINS, Chain, EGRESS, INGRESS, PORT_EGRESS, PORT_INGRESS, PU_EGRESS, PU_INGRESS, STACK_EGRESS, TAP_INGRESS,
    XdpState, pin_name, split_pin_name,
};
use super::links::{self, Placed};
use super::scope::{Role, Scope, scope};
use super::{Interfaces, Kernel, LoadError};
use crate::link_net::{self, Interface};
use crate::sys;

/// An interface the enforcer is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface.
    pub interface: Interface,
    /// What the programs there are for.
    pub role: Role,
    /// What to say of it; empty for nothing.
    pub note: String,
    /// Whether it is a PU's own.
    pub pu: bool,
    /// What XDP does here.
    pub xdp: XdpState,
    /// Whether a former agent's links were taken over.
    pub placed: Placed,
}

/// An interface the enforcer is not at, or not wholly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apart {
    /// The interface.
    pub interface: Interface,
    /// Why not.
    pub why: String,
    /// It should be there: attaching failed, and is tried again.
    pub failed: bool,
}

/// What became of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Considered {
    /// Nothing was to be done.
    Unchanged,
    /// Programs were attached, or others than before.
    Attached,
    /// It is no longer to be enforced on.
    Detached,
}

impl Kernel {
    /// The interfaces the enforcer is at.
    pub fn interfaces(&self) -> impl Iterator<Item = &Attached> {
        self.attached.values()
    }

    /// The interfaces it is not at, and why; the TAP is none of them.
    pub fn apart(&self) -> impl Iterator<Item = &Apart> {
        self.apart.values()
    }

    /// Attaches to an interface, detaches from it or leaves it, as it is now and as the configuration wants. Repeating
    /// it is harmless.
    ///
    /// # Errors
    /// What the kernel refused; the interface is among [`Kernel::apart`] then, and [`Kernel::retry`] tries again.
    pub fn consider(&mut self, interface: Interface) -> Result<Considered, LoadError> {
        let pu = self.attached.get(&interface.index).is_some_and(|former| former.pu);
        self.consider_as(interface, pu)
    }

    /// Tries again where attaching failed; the interfaces where it did not fail this time.
    pub fn retry(&mut self) -> Vec<String> {
        let failed: Vec<u32> = self.apart.values().filter(|apart| apart.failed).map(|at| at.interface.index).collect();
        let mut done = Vec::new();
        for index in failed {
            let Ok(Some(interface)) = link_net::by_index(index) else { continue };
            let name = interface.name.clone();
            if self.consider(interface).is_ok() {
                done.push(name);
            }
        }
        done
    }

    /// As [`Kernel::consider`], by name; `None` if the enforcer is not to be there.
    ///
    /// # Errors
    /// [`LoadError::NoInterface`], or what the kernel refused.
    pub fn attach_interface(&mut self, name: &str) -> Result<Option<&Attached>, LoadError> {
        let interface = link_net::by_name(name)
            .map_err(LoadError::Interfaces)?
            .ok_or_else(|| LoadError::NoInterface(name.to_owned()))?;
        let index = interface.index;
        self.consider(interface)?;
        Ok(self.attached.get(&index))
    }

    /// Detaches from an interface, gone or not; whether the enforcer was there.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn detach_interface(&mut self, index: u32) -> Result<bool, LoadError> {
        let apart = self.apart.remove(&index);
        let attached = self.attached.remove(&index);
        let Some(interface) = attached.as_ref().map(|at| &at.interface).or(apart.as_ref().map(|at| &at.interface))
        else {
            return Ok(false);
        };
        self.clear(interface)?;
        Ok(attached.is_some())
    }

    /// Attaches to an interface that is a PU's own, whether or not it is among the interfaces to enforce on.
    ///
    /// # Errors
    /// [`LoadError::NoInterface`], or what the kernel refused.
    pub fn attach_pu_interface(&mut self, index: u32) -> Result<(), LoadError> {
        let interface = link_net::by_index(index)
            .map_err(LoadError::Interfaces)?
            .ok_or_else(|| LoadError::NoInterface(format!("with index {index}")))?;
        self.consider_as(interface, true).map(drop)
    }

    /// Makes an interface an ordinary one again, or detaches from it if it is not among those to enforce on.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn detach_pu_interface(&mut self, index: u32) -> Result<(), LoadError> {
        let Some(attached) = self.attached.get(&index) else { return Ok(()) };
        let interface = attached.interface.clone();
        self.consider_as(interface, false).map(drop)
    }

    /// Attaches wherever the configuration wants at start. Where all interfaces are meant, one that refuses keeps none of
    /// the others from being enforced.
    pub(super) fn attach_interfaces(&mut self) -> Result<(), LoadError> {
        let present = link_net::list().map_err(LoadError::Interfaces)?;
        if let Interfaces::Named(names) = &self.wanted {
            check_names(names, &present)?;
        }
        self.remove_dead_links()?;
        for interface in present {
            let index = interface.index;
            match self.consider(interface) {
                Ok(_) => {}
                // It went away meanwhile.
                Err(_) if link_net::by_index(index).is_ok_and(|found| found.is_none()) => {
                    self.apart.remove(&index);
                }
                Err(error) if self.wanted == Interfaces::All => tracing::error!(%error, "an interface is not enforced"),
                Err(error) => return Err(error),
            }
        }
        self.remove_unwanted_links()
    }

    fn consider_as(&mut self, interface: Interface, pu: bool) -> Result<Considered, LoadError> {
        if self.is_tap(&interface) {
            return Ok(Considered::Unchanged);
        }
        let index = interface.index;
        let Scope { role, why } = self.scope_of(&interface, pu);
        let failing = self.apart.get(&index).is_some_and(|apart| apart.failed);
        if let (Some(former), false) = (self.attached.get_mut(&index), failing)
            && Some(former.role) == role
            && former.pu == pu
        {
            former.interface = interface;
            former.note = why;
            return Ok(Considered::Unchanged);
        }
        let was_there = self.attached.contains_key(&index);
        let done = match role {
            // What a former agent left there goes when it is known what is wanted.
            None if !was_there && !failing => Ok(None),
            None => self.clear(&interface).map(|()| None),
            Some(role) => self.place(&interface, role, pu).map(Some),
        };
        match done {
            Ok(Some(attached)) => {
                self.apart.remove(&index);
                self.attached.insert(index, Attached { note: why, ..attached });
                Ok(Considered::Attached)
            }
            Ok(None) => {
                self.attached.remove(&index);
                self.apart.insert(index, Apart { interface, why, failed: false });
                Ok(if was_there { Considered::Detached } else { Considered::Unchanged })
            }
            Err(error) => {
                // What it is to be is kept for the next try.
                if let Some(former) = self.attached.get_mut(&index) {
                    former.pu = pu;
                }
                self.apart.insert(index, Apart { interface, why: error.to_string(), failed: true });
                Err(error)
            }
        }
    }

    fn scope_of(&self, interface: &Interface, pu: bool) -> Scope {
        let judged = |index| {
            let attached = self.attached.get(&index).filter(|attached| matches!(attached.role, Role::Judged { .. }));
            attached.map(|attached| attached.interface.name.clone())
        };
        let name = |index| match link_net::by_index(index) {
            Ok(Some(found)) => found.name,
            _ => format!("with index {index}"),
        };
        scope(&self.wanted, interface, pu, judged, name)
    }

    /// Puts what belongs there into place before it takes away what does not.
    fn place(&mut self, interface: &Interface, role: Role, pu: bool) -> Result<Attached, LoadError> {
        let (present, xdp): (&[&Chain], _) = match role {
            Role::Judged { stacked: false } => (&[&INGRESS, &EGRESS], None),
            Role::Judged { stacked: true } => (&[&INGRESS, &EGRESS, &STACK_EGRESS], None),
            Role::Port if pu => (&[&PORT_EGRESS, &PORT_INGRESS], Some("port: its master is enforced")),
            Role::Port => (&[&PORT_EGRESS], Some("port: its master is enforced")),
        };
        let of_pu: &[&Chain] = if pu { &[&PU_INGRESS, &PU_EGRESS] } else { &[] };
        let mut placed = Placed::TakenOver;
        for chain in present {
            if self.place_tc(chain, interface)? == Placed::Attached {
                placed = Placed::Attached;
            }
        }
        for chain in of_pu {
            self.place_tc(chain, interface)?;
        }
        // At start nobody knows yet whether a PU is behind it: what a former agent put there for one stays till then.
        let known = pu || self.attached.contains_key(&interface.index);
        for chain in CHAINS {
            let present = present.iter().chain(of_pu).any(|other| other.program == chain.program);
            if !present && (known || !chain.is_of_pu()) {
                self.displace_tc(chain, interface.index, &interface.name)?;
            }
        }
        let xdp = match xdp {
            None => self.place_xdp(interface)?,
            Some(why) => {
                self.displace_xdp(interface.index)?;
                XdpState::Off(why.to_owned())
            }
        };
        Ok(Attached { interface: interface.clone(), role, note: String::new(), pu, xdp, placed })
    }

    /// Takes away all that is ours.
    fn clear(&self, interface: &Interface) -> Result<(), LoadError> {
        for chain in CHAINS {
            self.displace_tc(chain, interface.index, &interface.name)?;
        }
        self.displace_xdp(interface.index)
    }

    /// A TAP of a former agent is known by the program at it.
    fn is_tap(&self, interface: &Interface) -> bool {
        self.tap == Some(interface.index)
            || self.pins.links.join(pin_name(TAP_INGRESS.program, interface.index)).exists()
    }

    /// Removes the pins of links whose interface is gone, before its index is given to another.
    fn remove_dead_links(&self) -> Result<(), LoadError> {
        for (name, link) in links::pinned(&self.pins.links)? {
            if link.target == 0 && link.kind != sys::LINK_RAW_TRACEPOINT {
                links::remove(&self.pins.links.join(name))?;
            }
        }
        Ok(())
    }

    /// Removes what a former agent attached to interfaces that this one is not to enforce on. A PU's own interface is left
    /// to the agent, which knows whether the PU still exists.
    fn remove_unwanted_links(&self) -> Result<(), LoadError> {
        for (name, _) in links::pinned(&self.pins.links)? {
            let Some((program, index)) = split_pin_name(&name) else { continue };
            let failed = self.apart.get(&index).is_some_and(|apart| apart.failed);
            let known = self.attached.contains_key(&index) || failed;
            let other = program == TAP_INGRESS.program
                || self.pins.links.join(pin_name(PU_INGRESS.program, index)).exists()
                || self.pins.links.join(pin_name(PU_EGRESS.program, index)).exists();
            if !known && !other {
                links::remove(&self.pins.links.join(name))?;
            }
        }
        Ok(())
    }
}

/// Names that exist, none of them a port: at its master the same packets would be judged again, or have to be.
fn check_names(names: &[String], present: &[Interface]) -> Result<(), LoadError> {
    for name in names {
        let Some(interface) = present.iter().find(|interface| interface.name == *name) else {
            return Err(LoadError::NoInterface(name.clone()));
        };
        if let Some(master) = interface.port_of() {
            let of = present.iter().find(|other| other.index == master.index).map_or("its master", |of| &of.name);
            return Err(LoadError::Port { port: name.clone(), master: of.to_owned(), kind: master.kind.clone() });
        }
    }
    Ok(())
}

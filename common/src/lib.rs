//! Types shared by the enforcer's kernel programs and its userspace.
//!
//! Everything here is `no_std`, `repr(C)` where it crosses the border, and free of padding the kernel could see
//! uninitialised. A change of any layout is a change of [`abi::VERSION`].
#![no_std]

pub mod abi;
pub mod datagram;
pub mod drop_reason;
pub mod event;
pub mod flow;
pub mod host;
pub mod identity;
pub mod shield;
pub mod verdict;
pub mod wire;
pub mod workload;

/// An IP address as four words in network byte order; IPv4 as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
pub type Addr = [u32; 4];

/// Third word of an IPv4-mapped [`Addr`].
pub const V4_MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// The address that stands for an IPv4 address given in network byte order.
#[inline(always)]
pub const fn addr_v4(v4_be: u32) -> Addr {
    [0, 0, V4_MAPPED, v4_be]
}

/// Whether `addr` stands for an IPv4 address.
#[inline(always)]
pub const fn is_v4(addr: &Addr) -> bool {
    addr[0] == 0 && addr[1] == 0 && addr[2] == V4_MAPPED
}

/// The types that live in maps, marked as plain data for aya.
#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($ty:ty),* $(,)?) => {
            $(
                // SAFETY: `repr(C)`, no pointers, no padding (checked by the layout tests), every bit pattern valid.
                unsafe impl aya::Pod for $ty {}
            )*
        };
    }
    pod!(
        crate::abi::Config,
        crate::datagram::DatagramPeer,
        crate::event::Event,
        crate::flow::Flow,
        crate::flow::FlowKey,
        crate::host::Host,
        crate::identity::Credential,
        crate::identity::ListenerKey,
        crate::identity::Network,
        crate::identity::PeerAddr,
        crate::identity::PeerPu,
        crate::identity::Pu,
        crate::identity::Session,
        crate::identity::SessionPu,
        crate::shield::Resumes,
        crate::shield::Shield,
        crate::shield::Source,
        crate::verdict::Interval,
        crate::verdict::Pair,
        crate::verdict::Run,
        crate::workload::CgroupPattern,
        crate::workload::FileKey,
        crate::workload::FileVerdict,
        crate::workload::Unsorted,
        crate::workload::Watch,
    );
}

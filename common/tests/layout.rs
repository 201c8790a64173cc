//! Every type that crosses the border between kernel and agent, byte for byte: sizes, offsets, no padding. A test that
//! fails here says that `abi::VERSION` must change.

use core::mem::{MaybeUninit, offset_of, size_of_val};

use common::abi::{self, Config, Injection};
use common::datagram::{Accepted, DatagramPeer, Trailer};
use common::drop_reason;
use common::event::{Event, Held};
use common::flow::{Flow, FlowKey};
use common::host::Host;
use common::identity::{Credential, ListenerKey, Network, PeerAddr, PeerPu, Pu, Session, SessionPu};
use common::shield::{Resumes, Shield, Source};
use common::verdict::{Interval, Pair, Run};
use common::wire::{MacKey, OptionBytes};
use common::workload::{CgroupPattern, FileKey, FileVerdict, Offsets, Unsorted, Watch, WorkloadEvent};

/// Asserts size and offsets. The pattern names every field, so a new one does not compile before it is listed; the sizes
/// of all fields make up the whole, so there is no padding the kernel could see uninitialised.
macro_rules! layout {
    ($ty:ident, $size:literal, $($field:ident @ $offset:literal),* $(,)?) => {{
        // SAFETY: plain integers and arrays of them, for which zero is a value.
        let value: $ty = unsafe { MaybeUninit::zeroed().assume_init() };
        let $ty { $($field),* } = &value;
        assert_eq!(size_of::<$ty>(), $size, concat!("size of ", stringify!($ty)));
        $(assert_eq!(
            offset_of!($ty, $field),
            $offset,
            concat!("offset of ", stringify!($ty), "::", stringify!($field))
        );)*
        assert_eq!([$(size_of_val($field)),*].iter().sum::<usize>(), $size, concat!("padding in ", stringify!($ty)));
    }};
}

#[test]
fn configuration() {
    assert_eq!(abi::VERSION, 1);
    assert_eq!(abi::PIN_DIR, "v1");
    layout!(
        Config, 40,
        heartbeat_ns @ 0, agent_timeout_ns @ 8, netns_cookie @ 16, generation @ 24, mark @ 28, flags @ 32, self_session @ 36,
    );
    layout!(Host, 24, trial_until_ns @ 0, trial_from @ 8, trial_flags @ 12, pu @ 16, agent @ 20);
    layout!(Injection, 16, magic @ 0, ifindex @ 4, flags @ 8, count @ 12);
}

#[test]
fn events() {
    layout!(
        Held, 2128,
        time_ns @ 0, kind @ 8, len @ 12, ifindex @ 16, at_pu_interface @ 20, pu @ 24, subject @ 28, object @ 32, offset @ 36,
        key @ 40, frame @ 80,
    );
    layout!(
        Event, 128,
        time_ns @ 0, kind @ 8, role @ 9, path @ 10, direction @ 11, reason @ 12, peer_reason @ 14, key @ 16, pu @ 56,
        local_identity @ 60, peer_identity @ 64, session @ 68, rule @ 72, observed_rule @ 76, rtt_us @ 80,
        generation @ 84, created_ns @ 88, bytes_out @ 96, packets_out @ 104, bytes_in @ 112, packets_in @ 120,
    );
}

#[test]
fn workloads() {
    layout!(
        Offsets, 48,
        cgroup_kn @ 0, kernfs_node_id @ 4, task_tgid @ 8, binprm_file @ 12, file_inode @ 16, inode_ino @ 20, inode_sb @ 24,
        inode_ctime_sec @ 28, sb_dev @ 32, kernfs_node_name @ 36, cgroup_root @ 40, root_hierarchy @ 44,
    );
    layout!(Watch, 72, root @ 0, root_level @ 8, flags @ 12, patterns @ 16, unknown_file @ 20, offsets @ 24);
    layout!(
        CgroupPattern, 512,
        prefix @ 0, prefix_mask @ 128, name @ 256, name_mask @ 320, suffix @ 384, suffix_mask @ 448,
    );
    layout!(FileKey, 16, inode @ 0, device @ 8, pad @ 12);
    layout!(FileVerdict, 16, ctime_sec @ 0, bits @ 8, pad @ 12);
    layout!(Unsorted, 16, since_ns @ 0, root @ 8, pad @ 12);
    layout!(
        WorkloadEvent, 560,
        cgroup @ 0, file @ 8, ctime_sec @ 24, kind @ 32, process @ 36, pu @ 40, path_len @ 44, path @ 48,
    );
}

#[test]
fn flows() {
    layout!(FlowKey, 40, local @ 0, remote @ 16, local_port @ 32, remote_port @ 34, proto @ 36, pad @ 37);
    layout!(
        Flow, 128,
        state @ 0, role @ 1, path @ 2, flags @ 3, reason @ 4, local_handle @ 6, peer_handle @ 8, counted @ 10, pu @ 12,
        local_identity @ 16, peer_identity @ 20, session @ 24, local_isn @ 28, peer_isn @ 32, generation @ 36, rule @ 40,
        observed_rule @ 44, ifindex @ 48, pu_ifindex @ 52, next_out @ 56, ack_out @ 60, rtt_us @ 64, credential @ 68, confirm_mac @ 72,
        created_ns @ 80, bytes_out @ 88, packets_out @ 96, bytes_in @ 104, packets_in @ 112, seen_ns @ 120,
    );
}

#[test]
fn identities() {
    layout!(Pu, 24, identity @ 0, credential @ 4, credential_until_ns @ 8, handle @ 16, flags @ 18, pad @ 20);
    layout!(Credential, 1208, hash_index @ 0, len @ 4, hash_mac @ 8, csum @ 16, pad @ 20, bytes @ 24);
    layout!(MacKey, 16, k0 @ 0, k1 @ 8);
    layout!(Session, 48, key_out @ 0, key_in @ 16, until_ns @ 32, peer_index @ 40, peer @ 44);
    layout!(PeerAddr, 20, addr @ 0, port @ 16, pad @ 18);
    layout!(SessionPu, 8, session @ 0, handle @ 4, pad @ 6);
    layout!(PeerPu, 24, until_ns @ 0, issued_ms @ 8, identity @ 16, pad @ 20);
    layout!(Network, 8, external @ 0, flags @ 4);
    layout!(ListenerKey, 20, addr @ 0, port @ 16, pad @ 18);
}

#[test]
fn the_shield() {
    layout!(
        Shield, 64,
        source_interval_ns @ 0, source_burst_ns @ 8, all_interval_ns @ 16, all_burst_ns @ 24, secret @ 32, former_secret @ 48,
    );
    layout!(Source, 16, network @ 0);
    layout!(Resumes, 72, entered @ 0, macs @ 8);
}

#[test]
fn verdicts() {
    layout!(Pair, 8, subject @ 0, object @ 4);
    layout!(Run, 8, start @ 0, len @ 4);
    assert_eq!(align_of::<Run>(), 8, "the kernel reads it as one word");
    layout!(Interval, 20, low @ 0, high @ 4, rule @ 8, observed_rule @ 12, flags @ 16);
}

#[test]
fn the_wire() {
    layout!(
        Trailer, 36,
        version_type @ 0, flags @ 1, handle @ 2, index @ 4, sender_index @ 8, peer_handle @ 12, len @ 14, time @ 16, mac @ 24,
        magic @ 32,
    );
    layout!(DatagramPeer, 20, addr @ 0, port @ 16, proto @ 18);
    layout!(Accepted, 16, time @ 0, session @ 8, handle @ 12, pad @ 14);
    layout!(OptionBytes, 20, kind @ 0, len @ 1, exid @ 2, version_type @ 4, flags @ 5, handle @ 6, index @ 8, mac @ 12);
}

/// Numbers travel between versions and lie in logs: lines of this file are added, never changed or removed.
#[test]
fn reasons_are_only_ever_added() {
    let listed: Vec<(u16, &str)> = include_str!("reasons.txt")
        .lines()
        .map(|line| line.split_once(' ').expect("a number and a name"))
        .map(|(number, name)| (number.parse().expect("a number"), name))
        .collect();
    let present: Vec<(u16, &str)> = drop_reason::ALL.iter().map(|reason| (*reason as u16, reason.name())).collect();
    assert_eq!(present, listed, "add new reasons to common/tests/reasons.txt, at its end");
    let last = listed.last().expect("a reason").0;
    assert!(abi::reason_stat(last, true) < abi::REASON_STATS);
}

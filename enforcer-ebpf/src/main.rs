//! The enforcer's kernel programs: one file a hook, each of the same shape (parse, attribute, look up, judge, count,
//! emit); what they share lies in the files named after it.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics), allow(internal_features))]
#![no_main]

mod attribute;
mod cleared;
mod confirm;
mod datagram;
mod datagram_in;
mod datagram_out;
mod datagram_rewrite;
mod emit;
mod flow_table;
mod gate;
mod hook_cgroup_ingress;
mod hook_cgroup_mkdir;
mod hook_cgroup_sock;
mod hook_cgroup_sockopt;
mod hook_exec;
mod hook_sockops;
mod hook_tap;
mod hook_tc_datagram;
mod hook_tc_egress;
mod hook_tc_ingress;
mod hook_tc_stack;
mod hook_xdp;
mod host;
mod icmp_errors;
mod inbound;
mod inbound_answer;
mod inbound_open;
mod judge;
mod maps;
mod names;
mod observe;
mod other_protocols;
mod out_of_band;
mod outbound;
mod outbound_open;
mod packet;
mod resumes;
mod rewrite;
mod turn_around;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

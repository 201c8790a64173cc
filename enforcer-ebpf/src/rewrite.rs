//! Changing packets: growing the header by our option, attaching a credential, keeping checksums right.
//!
//! Fields the TCP checksum covers are stored without `BPF_F_RECOMPUTE_CSUM` and corrected in the checksum field itself:
//! on complete checksums both changes cancel out, and partial ones (`CHECKSUM_PARTIAL`) are finished by the device.

use aya_ebpf::{
    bindings::BPF_F_PSEUDO_HDR,
    cty::c_void,
    helpers::generated::{
        bpf_csum_diff, bpf_csum_update, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_change_tail,
        bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use common::{
    drop_reason::Reason,
    identity::Credential,
    wire::{CREDENTIAL_MAX, OPTION_LEN, OptionBytes},
};

use crate::packet::{ETH_LEN, Ip, Tcp, bounded, raw};

const OPTION: u32 = OPTION_LEN as u32;
const MAX_HEADER: u32 = 60;

/// Stores plain bytes, without touching any checksum.
#[inline(always)]
pub fn store<T>(ctx: &TcContext, offset: u32, value: &T) -> Result<(), Reason> {
    let pointer = core::ptr::from_ref(value).cast::<c_void>();
    // SAFETY: the helper copies `size_of::<T>()` bytes from our value and checks the packet's bounds.
    match unsafe { bpf_skb_store_bytes(ctx.skb.skb, offset, pointer, size_of::<T>() as u32, 0) } {
        0 => Ok(()),
        _ => Err(Reason::Internal),
    }
}

/// Loads plain bytes into `value`.
#[inline(always)]
pub fn load<T>(ctx: &TcContext, offset: u32, value: &mut T) -> Result<(), Reason> {
    let pointer = core::ptr::from_mut(value).cast::<c_void>();
    // SAFETY: the helper writes `size_of::<T>()` bytes into our value and checks the packet's bounds.
    match unsafe { bpf_skb_load_bytes(raw(ctx), offset, pointer, size_of::<T>() as u32) } {
        0 => Ok(()),
        _ => Err(Reason::Internal),
    }
}

/// Replaces two or four bytes the TCP checksum covers.
#[inline(always)]
pub fn replace_l4<T: Copy + Into<u64> + PartialEq>(
    ctx: &TcContext,
    ip: &Ip,
    offset: u32,
    from: T,
    to: T,
) -> Result<(), Reason> {
    if from == to {
        return Ok(());
    }
    store(ctx, offset, &to)?;
    // SAFETY: a helper call; bounds are checked by the kernel.
    match unsafe { bpf_l4_csum_replace(ctx.skb.skb, ip.l4 + 16, from.into(), to.into(), size_of::<T>() as u64) } {
        0 => Ok(()),
        _ => Err(Reason::Internal),
    }
}

/// Adds a precomputed difference to the TCP checksum.
#[inline(always)]
fn add_l4(ctx: &TcContext, ip: &Ip, difference: u32) -> Result<(), Reason> {
    // SAFETY: a helper call; size 0 means "by difference".
    match unsafe { bpf_l4_csum_replace(ctx.skb.skb, ip.l4 + 16, 0, difference as u64, 0) } {
        0 => Ok(()),
        _ => Err(Reason::Internal),
    }
}

/// Overwrites the option that ends the TCP header.
#[inline(always)]
pub fn overwrite_option(
    ctx: &TcContext,
    ip: &Ip,
    tcp: &Tcp,
    old: &OptionBytes,
    new: &OptionBytes,
) -> Result<(), Reason> {
    overwrite(ctx, ip, ip.l4 + tcp.header - OPTION, old, new)
}

/// Overwrites the option-sized piece `old` of the TCP header at `offset`.
#[inline(always)]
pub fn overwrite(ctx: &TcContext, ip: &Ip, offset: u32, old: &OptionBytes, new: &OptionBytes) -> Result<(), Reason> {
    store(ctx, offset, new)?;
    let mut from = *old;
    let mut to = *new;
    // SAFETY: both are twenty readable bytes.
    let difference = unsafe {
        bpf_csum_diff(core::ptr::from_mut(&mut from).cast(), OPTION, core::ptr::from_mut(&mut to).cast(), OPTION, 0)
    };
    add_l4(ctx, ip, difference as u32)
}

/// Grows a header of `header` bytes by `option` and replaces the payload by `credential` (or nothing). A header without
/// room is refused; a SYN is given room by [`make_room`] first.
#[inline(never)]
pub fn attach(
    ctx: &TcContext,
    ip: &Ip,
    header: u32,
    option: &OptionBytes,
    credential: Option<&Credential>,
) -> Result<(), Reason> {
    if header + OPTION > MAX_HEADER {
        return Err(Reason::OptionSpace);
    }
    let new_header = header + OPTION;
    let end = ip.l4 + new_header + credential.map_or(0, |credential| credential.len);
    let mut option = *option;
    // SAFETY: helper calls on our own context and on values we own.
    unsafe {
        if bpf_skb_change_tail(ctx.skb.skb, end, 0) != 0 {
            return Err(Reason::Internal);
        }
        store(ctx, ip.l4 + header, &option)?;
        let difference = bpf_csum_diff(core::ptr::null_mut(), 0, core::ptr::from_mut(&mut option).cast(), OPTION, 0);
        add_l4(ctx, ip, difference as u32)?;
    }
    if let Some(credential) = credential {
        store_credential(ctx, ip, ip.l4 + new_header, credential)?;
    }
    set_header_length(ctx, ip, new_header)?;
    set_length(ctx, ip, end)?;
    if ip.end == ip.l4 + header {
        return Ok(());
    }
    complete_checksum(ctx, ip, new_header, end, credential.map_or(0, |credential| credential.csum))
}

/// Appends `credential` to a segment without payload.
#[inline(never)]
pub fn append(ctx: &TcContext, ip: &Ip, credential: &Credential) -> Result<(), Reason> {
    let end = ip.end + credential.len;
    // SAFETY: a helper call on our own context.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, end, 0) } != 0 {
        return Err(Reason::Internal);
    }
    store_credential(ctx, ip, ip.end, credential)?;
    set_length(ctx, ip, end)
}

#[inline(always)]
fn store_credential(ctx: &TcContext, ip: &Ip, at: u32, credential: &Credential) -> Result<(), Reason> {
    let len = bounded(credential.len, CREDENTIAL_MAX as u32).ok_or(Reason::NoCredential)?;
    // SAFETY: `len` bytes of the map value are readable; the kernel checks the packet's bounds.
    if unsafe { bpf_skb_store_bytes(ctx.skb.skb, at, credential.bytes.as_ptr().cast::<c_void>(), len, 0) } != 0 {
        return Err(Reason::Internal);
    }
    add_l4(ctx, ip, credential.csum)
}

/// Sets the length the TCP header gives itself.
#[inline(always)]
pub fn set_header_length(ctx: &TcContext, ip: &Ip, to: u32) -> Result<(), Reason> {
    let mut old = 0u16;
    load(ctx, ip.l4 + 12, &mut old)?;
    let mut bytes = old.to_ne_bytes();
    bytes[0] = (bytes[0] & 0x0f) | ((to as u8) << 2);
    replace_l4(ctx, ip, ip.l4 + 12, old, u16::from_ne_bytes(bytes))
}

/// Sets the network header's length and the length in TCP's pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
pub fn set_length(ctx: &TcContext, ip: &Ip, new_end: u32) -> Result<(), Reason> {
    if new_end == ip.end {
        return Ok(());
    }
    let old_tcp = ((ip.end - ip.l4) as u16).to_be();
    let new_tcp = ((new_end - ip.l4) as u16).to_be();
    // SAFETY: helper calls; bounds are checked by the kernel.
    unsafe {
        if bpf_l4_csum_replace(ctx.skb.skb, ip.l4 + 16, old_tcp as u64, new_tcp as u64, BPF_F_PSEUDO_HDR as u64 | 2)
            != 0
        {
            return Err(Reason::Internal);
        }
        if ip.v6 {
            return store(ctx, ETH_LEN + 4, &((new_end - ETH_LEN - 40) as u16).to_be());
        }
        let old = ((ip.end - ETH_LEN) as u16).to_be();
        let new = ((new_end - ETH_LEN) as u16).to_be();
        store(ctx, ETH_LEN + 2, &new)?;
        if bpf_l3_csum_replace(ctx.skb.skb, ETH_LEN + 10, old as u64, new as u64, 2) != 0 {
            return Err(Reason::Internal);
        }
    }
    Ok(())
}

/// Makes the TCP checksum right after bytes were cut off whose sum nobody kept: summed anew over the header of `header`
/// bytes, the pseudo header of a packet that ends at `end`, and `payload`, the sum of what follows the header.
///
/// The kernel applies the correction to complete checksums only; a partial one covers no byte that was cut off.
#[inline(never)]
pub fn complete_checksum(ctx: &TcContext, ip: &Ip, header: u32, end: u32, payload: u32) -> Result<(), Reason> {
    // The marker of a mapped IPv4 address is 0xffff, which is zero in one's complement.
    let mut sum = payload as u64 + (ip.proto as u32).to_be() as u64 + (end - ip.l4).to_be() as u64;
    for word in 0..4 {
        sum += ip.src[word] as u64 + ip.dst[word] as u64;
    }
    for word in 0..MAX_HEADER / 4 {
        if word * 4 >= header {
            break;
        }
        let mut value = 0u32;
        load(ctx, ip.l4 + word * 4, &mut value)?;
        sum += value as u64;
    }
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    add_l4(ctx, ip, sum)?;
    // SAFETY: a helper call; it keeps a sum the device made of the whole packet in step, and refuses where there is none.
    unsafe { bpf_csum_update(ctx.skb.skb, !sum) };
    Ok(())
}

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MPTCP: u8 = 30;
const OPTION_FAST_OPEN: u8 = 34;
const OPTION_EXPERIMENT: u8 = 254;
/// Fast Open as an experiment (RFC 7413 appendix A), which Linux tries next when a server took no notice of the option.
const EXPERIMENT_FAST_OPEN: [u8; 2] = [0xf9, 0x89];

/// Options that are walked before a header counts as full.
const MAX_OPTIONS: u32 = 10;

/// Takes a trailing MPTCP or Fast Open option out of a SYN whose header is too full for ours, and returns the header's
/// new length. MPTCP then falls back to TCP, Fast Open to an ordinary handshake. Stacks write these options last;
/// anything else means there is no room.
#[inline(never)]
pub fn make_room(ctx: &TcContext, ip: &Ip, tcp: &Tcp) -> Result<u32, Reason> {
    let mut at = 20u32;
    for _ in 0..MAX_OPTIONS {
        // A bound the verifier sees without following every value.
        at = core::hint::black_box(at) & 63;
        let mut head = [0u8; 4];
        // SAFETY: reads four bytes into a value we own.
        let read = unsafe { bpf_skb_load_bytes(raw(ctx), ip.l4 + at, head.as_mut_ptr().cast(), 4) };
        if read != 0 || at + 2 > tcp.header {
            break;
        }
        match head[0] {
            OPTION_END => break,
            OPTION_NOP => at += 1,
            OPTION_EXPERIMENT if [head[2], head[3]] != EXPERIMENT_FAST_OPEN => at += head[1] as u32,
            OPTION_MPTCP | OPTION_FAST_OPEN | OPTION_EXPERIMENT => {
                let kept = (at + 3) & !3;
                if kept + OPTION > MAX_HEADER || kept > tcp.header {
                    break;
                }
                fill_nop(ctx, ip, at, kept)?;
                return Ok(kept);
            }
            _ => at += head[1] as u32,
        }
    }
    Err(Reason::OptionSpace)
}

/// No-operation from `at` to the next multiple of four; [`attach`] completes the checksum.
#[inline(always)]
fn fill_nop(ctx: &TcContext, ip: &Ip, at: u32, kept: u32) -> Result<(), Reason> {
    for offset in 0..3 {
        if at + offset < kept {
            store(ctx, ip.l4 + at + offset, &OPTION_NOP)?;
        }
    }
    Ok(())
}

//! Parsing: Ethernet, IPv4, IPv6, TCP. Reads straight from the packet; nothing is trusted before it is bounds-checked.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_skb_pull_data, programs::TcContext};
use common::{Addr, addr_v4, flow::FlowKey, wire::OptionBytes};

pub const ETH_LEN: u32 = 14;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
const ETH_P_QINQ1: u16 = 0x9100;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// Length of IPv6's fragment header.
pub const FRAGMENT_HEADER: u32 = 8;

/// Extension headers that are walked before a packet is taken for malformed.
const MAX_EXTENSION_HEADERS: u32 = 8;

/// What was found in the network header. The addresses stand apart: together they would be copied by a call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ip {
    pub src: Addr,
    /// Offset of the transport header.
    pub l4: u32,
    /// Offset after the last byte the network header accounts for.
    pub end: u32,
    pub dst: Addr,
    pub v6: bool,
    /// Transport protocol.
    pub proto: u8,
    /// IPv6 extension headers other than a fragment's, or IPv4 options, stand before the transport header.
    pub extended: bool,
    /// The first fragment of several.
    pub first_fragment: bool,
    /// A fragment other than the first.
    pub later_fragment: bool,
}

/// What was found in the TCP header.
#[derive(Clone, Copy)]
pub struct Tcp {
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    /// Header length, bytes.
    pub header: u32,
    pub flags: u8,
    /// Bytes of payload.
    pub payload: u32,
    /// Our option, if the header ends with it.
    pub option: Option<OptionBytes>,
}

/// Why parsing stopped.
pub enum Stop {
    /// Not IP: none of our business.
    NotIp,
    /// Shorter than it claims.
    Malformed,
}

/// A parsed packet. Lives in per-CPU scratch: 512 bytes of stack are too few for it and what follows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Parsed {
    pub ip: Ip,
    pub tcp: Tcp,
    pub key: FlowKey,
}

/// Direct access to the bytes of a packet, whatever the program type.
pub trait Bytes {
    fn start(&self) -> usize;
    fn end(&self) -> usize;
}

impl Bytes for TcContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }
    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

impl Bytes for aya_ebpf::programs::XdpContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }
    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

/// A `T` at `offset`, if it lies within the packet.
#[inline(always)]
pub fn read<T: Copy>(bytes: &impl Bytes, offset: u32) -> Option<T> {
    let start = bytes.start() + offset as usize;
    if start + size_of::<T>() > bytes.end() {
        return None;
    }
    // SAFETY: the bounds were just checked against data_end, as the verifier demands. Headers may lie unaligned; an
    // unaligned read would be made of single bytes here, and the verifier refuses the plain one where the machine cannot.
    Some(unsafe { (start as *const T).read() })
}

/// An IPv6 address at `offset`. Word by word: as a whole it would be moved by a call.
#[inline(always)]
fn read_address(bytes: &impl Bytes, offset: u32) -> Option<Addr> {
    let start = bytes.start() + offset as usize;
    if start + size_of::<Addr>() > bytes.end() {
        return None;
    }
    let words = start as *const u32;
    // SAFETY: as in `read`.
    Some(unsafe {
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    })
}

/// Makes the headers readable if they may lie outside the linear part; whether anything was moved.
#[inline(always)]
pub fn pull(ctx: &TcContext) -> bool {
    let wanted = if ctx.len() < 128 { ctx.len() } else { 128 };
    // SAFETY: a helper call on our own context.
    ctx.data() + wanted as usize > ctx.data_end() && unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted) } == 0
}

#[repr(C)]
#[derive(Clone, Copy)]
struct V4Header {
    version_ihl: u8,
    tos: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    proto: u8,
    check: u16,
    src: u32,
    dst: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct V6Header {
    version: u32,
    payload_len: u16,
    next: u8,
    hop_limit: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct TcpHeader {
    sport: u16,
    dport: u16,
    seq: u32,
    ack: u32,
    offset: u8,
    flags: u8,
    window: u16,
    check: u16,
    urgent: u16,
}

/// What a packet turned out to be.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP in one piece: everything in [`Parsed`] is valid.
    Tcp,
    /// Only the network header is valid.
    Other,
    /// As `Other`, on an interface without link-layer header: good for attribution only.
    Bare,
    NotIp,
    Malformed,
}

/// Parses a packet; `inbound` says whose view of the connection the key shall be. A function of its own, so that its
/// stack is free again before the verdict.
///
/// Where TCP's headers can be read as they lie, they are: to pull what follows them copies the header of every segment
/// that a stack sends, because it keeps a clone to send again.
#[inline(never)]
pub fn parse(ctx: &TcContext, parsed: &mut Parsed, inbound: bool) -> Kind {
    for _ in 0..2 {
        let kind = parse_linear(ctx, parsed, inbound);
        if kind == Kind::Tcp || !pull(ctx) {
            return kind;
        }
    }
    Kind::Malformed
}

/// Whether a VLAN's tag stands in the frame itself. The kernel keeps its own tags beside the frame; whoever writes one
/// hides what follows.
#[inline(always)]
pub fn is_tagged(ctx: &TcContext) -> bool {
    read::<u16>(ctx, 12).is_some_and(|kind| matches!(u16::from_be(kind), ETH_P_8021Q | ETH_P_8021AD | ETH_P_QINQ1))
}

/// Whether this is ARP, or so short that it has a length in the place of a type (IEEE 802.2), which Linux hands to no
/// protocol of the Internet.
#[inline(always)]
pub fn is_of_the_link(ctx: &TcContext) -> bool {
    const SHORTEST_TYPE: u16 = 0x0600;
    read::<u16>(ctx, 12).is_none_or(|kind| {
        let kind = u16::from_be(kind);
        kind == ETH_P_ARP || kind < SHORTEST_TYPE
    })
}

/// What the fragments of one packet have in common besides addresses and protocol; of IPv6, where its header is the only extension.
#[inline(always)]
pub fn fragment_id(ctx: &TcContext, ip: &Ip) -> u32 {
    if ip.v6 {
        return read::<u32>(ctx, ETH_LEN + 40 + 4).unwrap_or_default();
    }
    read::<u16>(ctx, ETH_LEN + 4).unwrap_or_default() as u32
}

/// Parses what lies in the linear part.
#[inline(always)]
fn parse_linear(ctx: &TcContext, parsed: &mut Parsed, inbound: bool) -> Kind {
    if is_bare(ctx) {
        return if network_header(ctx, &mut parsed.ip).is_ok() { Kind::Bare } else { Kind::Malformed };
    }
    match ip(ctx, &mut parsed.ip) {
        Ok(()) => {}
        Err(Stop::NotIp) => return Kind::NotIp,
        Err(Stop::Malformed) => return Kind::Malformed,
    }
    // Larger than the header's length field can say (BIG TCP): the packet says it.
    if parsed.ip.end == ETH_LEN || parsed.ip.v6 && parsed.ip.end == ETH_LEN + 40 {
        parsed.ip.end = ctx.len();
    }
    if !parsed.ip.is_plain_tcp() {
        return Kind::Other;
    }
    if tcp(ctx, &parsed.ip, &mut parsed.tcp).is_none() {
        return Kind::Malformed;
    }
    if inbound {
        parsed.ip.key_of_receiver(parsed.tcp.sport, parsed.tcp.dport, &mut parsed.key);
    } else {
        parsed.ip.key_of_sender(parsed.tcp.sport, parsed.tcp.dport, &mut parsed.key);
    }
    Kind::Tcp
}

/// Whether the packet starts with its network header: the kernel takes it for IP, the bytes do not.
#[inline(always)]
fn is_bare(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid for the whole program.
    let protocol = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    let is_ip = protocol == ETH_P_IP || protocol == ETH_P_IPV6;
    is_ip && read::<u16>(ctx, 12).is_none_or(|bytes| u16::from_be(bytes) != protocol)
}

/// Parses a network header at the very start of a packet.
#[inline(always)]
pub fn network_header(ctx: &TcContext, found: &mut Ip) -> Result<(), Stop> {
    header_at(ctx, 0, found)
}

/// Parses a network header that begins at `start`.
#[inline(always)]
pub fn header_at(bytes: &impl Bytes, start: u32, found: &mut Ip) -> Result<(), Stop> {
    let first: [u8; 2] = read(bytes, start).ok_or(Stop::Malformed)?;
    if first[0] >> 4 == 4 { ipv4(bytes, start, found) } else { ipv6(bytes, start, found) }
}

/// Parses the network header.
#[inline(always)]
pub fn ip(bytes: &impl Bytes, found: &mut Ip) -> Result<(), Stop> {
    let ethertype = u16::from_be(read::<u16>(bytes, 12).ok_or(Stop::NotIp)?);
    match ethertype {
        ETH_P_IP => ipv4(bytes, ETH_LEN, found),
        ETH_P_IPV6 => ipv6(bytes, ETH_LEN, found),
        _ => Err(Stop::NotIp),
    }
}

#[inline(always)]
fn ipv4(bytes: &impl Bytes, start: u32, found: &mut Ip) -> Result<(), Stop> {
    let header: V4Header = read(bytes, start).ok_or(Stop::Malformed)?;
    let ihl = ((header.version_ihl & 0x0f) as u32) << 2;
    if header.version_ihl >> 4 != 4 || ihl < 20 {
        return Err(Stop::Malformed);
    }
    let fragment = u16::from_be(header.fragment);
    found.v6 = false;
    found.src = addr_v4(header.src);
    found.dst = addr_v4(header.dst);
    found.proto = header.proto;
    found.extended = ihl != 20;
    found.first_fragment = fragment & 0x3fff == 0x2000;
    found.later_fragment = fragment & 0x1fff != 0;
    found.l4 = start + ihl;
    found.end = start + u16::from_be(header.total_len) as u32;
    Ok(())
}

#[inline(always)]
fn ipv6(bytes: &impl Bytes, start: u32, found: &mut Ip) -> Result<(), Stop> {
    let header: V6Header = read(bytes, start).ok_or(Stop::Malformed)?;
    found.v6 = true;
    found.src = read_address(bytes, start + 8).ok_or(Stop::Malformed)?;
    found.dst = read_address(bytes, start + 24).ok_or(Stop::Malformed)?;
    // IPv4 connections are kept under such addresses; in an IPv6 packet they would be taken for those.
    if is_mapped(&found.src) || is_mapped(&found.dst) {
        return Err(Stop::Malformed);
    }
    found.proto = header.next;
    found.extended = false;
    found.first_fragment = false;
    found.later_fragment = false;
    found.l4 = start + 40;
    found.end = start + 40 + u16::from_be(header.payload_len) as u32;
    if is_extension(header.next) {
        walk_extensions(bytes, found)?;
    }
    Ok(())
}

#[inline(always)]
fn is_mapped(addr: &Addr) -> bool {
    addr[0] == 0 && addr[1] == 0 && addr[2] == 0xffff_u32.to_be()
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

#[inline(always)]
fn walk_extensions(bytes: &impl Bytes, found: &mut Ip) -> Result<(), Stop> {
    let only = found.l4 + FRAGMENT_HEADER;
    found.extended = true;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(found.proto) {
            // A fragment header that says there is but one piece is as good as any other option.
            found.extended = !found.first_fragment || found.l4 != only;
            return Ok(());
        }
        if found.l4 > 512 {
            return Err(Stop::Malformed);
        }
        let header: [u8; 8] = read(bytes, found.l4).ok_or(Stop::Malformed)?;
        let len = if found.proto == 44 {
            let offset = u16::from_be_bytes([header[2], header[3]]);
            if offset & 0xfff8 != 0 {
                found.later_fragment = true;
            } else if offset & 1 != 0 {
                found.first_fragment = true;
            }
            8
        } else if found.proto == 51 {
            (header[1] as u32 + 2) << 2
        } else {
            (header[1] as u32 + 1) << 3
        };
        found.proto = header[0];
        found.l4 += len;
        if found.later_fragment {
            found.extended = found.l4 != only;
            return Ok(());
        }
    }
    Err(Stop::Malformed)
}

/// Parses the TCP header. `end` of the network header is trusted only as far as the packet reaches.
#[inline(always)]
pub fn tcp(bytes: &impl Bytes, ip: &Ip, found: &mut Tcp) -> Option<()> {
    if ip.l4 > 1024 {
        return None;
    }
    let header: TcpHeader = read(bytes, ip.l4)?;
    let length = ((header.offset >> 4) as u32) << 2;
    if length < 20 || ip.l4 + length > ip.end {
        return None;
    }
    found.option = None;
    if length >= 40 {
        let option: OptionBytes = read(bytes, ip.l4 + length - 20)?;
        if option.is_ours() {
            found.option = Some(option);
        }
    }
    found.sport = u16::from_be(header.sport);
    found.dport = u16::from_be(header.dport);
    found.seq = u32::from_be(header.seq);
    found.ack = u32::from_be(header.ack);
    found.header = length;
    found.flags = header.flags;
    found.payload = ip.end - ip.l4 - length;
    Some(())
}

impl Ip {
    /// TCP without extension headers or options of IP, in one piece.
    #[inline(always)]
    pub fn is_plain_tcp(&self) -> bool {
        self.proto == TCP && !self.extended && !self.first_fragment && !self.later_fragment
    }

    /// The connection as seen by the packet's sender.
    #[inline(always)]
    pub fn key_of_sender(&self, sport: u16, dport: u16, key: &mut FlowKey) {
        key.local = self.src;
        key.remote = self.dst;
        key.local_port = sport;
        key.remote_port = dport;
        key.proto = self.proto;
    }

    /// The connection as seen by the packet's receiver.
    #[inline(always)]
    pub fn key_of_receiver(&self, sport: u16, dport: u16, key: &mut FlowKey) {
        key.local = self.dst;
        key.remote = self.src;
        key.local_port = dport;
        key.remote_port = sport;
        key.proto = self.proto;
    }
}

/// linux/if_packet.h: the link-layer address is a broadcast's, or a multicast group's, or this host's own copy of either.
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;
const PACKET_LOOPBACK: u32 = 5;

/// Whether this is what a socket of this host sent to many, on its way around to those here.
#[inline(always)]
pub fn is_own_copy(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid for the whole program.
    unsafe { (*ctx.skb.skb).pkt_type == PACKET_LOOPBACK }
}

/// Whether several sockets may hear this packet: by its link-layer address or, where there is none, as on loopback, by
/// its network address.
#[inline(always)]
pub fn is_to_many(ctx: &TcContext, ip: &Ip) -> bool {
    // SAFETY: the context is valid for the whole program.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    if matches!(kind, PACKET_BROADCAST | PACKET_MULTICAST | PACKET_LOOPBACK) {
        return true;
    }
    if ip.v6 {
        return ip.dst[0].to_ne_bytes()[0] == 0xff;
    }
    let [first, _, _, last] = ip.dst[3].to_ne_bytes();
    first & 0xf0 == 0xe0 || last == 0xff && (first == 0xff || first == 0x7f)
}

/// A length of 1 to `max` bytes, in a form in which every kernel's verifier sees both bounds: older ones (6.1) do not learn that what is not zero is at
/// least one.
#[inline(always)]
pub fn bounded(len: u32, max: u32) -> Option<u32> {
    let less = core::hint::black_box(len.wrapping_sub(1));
    if less >= max { None } else { Some(less + 1) }
}

/// The context as helpers want it.
#[inline(always)]
pub fn raw(ctx: &TcContext) -> *mut c_void {
    ctx.skb.skb.cast()
}

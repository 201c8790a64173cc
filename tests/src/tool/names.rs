//! `lab-tool resolver` and `lab-tool ask`: a small DNS server and client, over UDP and TCP.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use simple_dns::rdata::{A, AAAA, CNAME, HTTPS, RData, SVCB};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, ResourceRecord, TYPE};

/// The largest answer over UDP (DNS flag day 2020); longer ones are truncated to nothing.
const UDP_MAX: usize = 1232;
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(crate) struct Resolver {
    /// Address and port to answer at, over UDP and TCP
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// `NAME TYPE TTL VALUE`; the type is A, AAAA, CNAME or HTTPS (its value is an IPv4 hint); the value `A.B.C.0/24` of an A
    /// stands for all its addresses
    #[arg(long, required = true)]
    record: Vec<String>,
    /// Before each answer over UDP, send one with another id that gives this address
    #[arg(long)]
    forge: Option<Ipv4Addr>,
}

struct Record {
    name: String,
    kind: TYPE,
    ttl: u32,
    values: Vec<String>,
}

impl Resolver {
    pub(crate) fn run(self) -> Result<()> {
        let records = self.record.iter().map(|text| Record::parse(text)).collect::<Result<Vec<_>>>()?;
        let records = Arc::new(records);
        for at in &self.listen {
            let (udp, tcp) = (UdpSocket::bind(at)?, TcpListener::bind(at)?);
            let (of_udp, of_tcp, forge) = (records.clone(), records.clone(), self.forge);
            thread::spawn(move || over_udp(&udp, &of_udp, forge));
            thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    let records = of_tcp.clone();
                    thread::spawn(move || over_tcp(stream, &records));
                }
            });
        }
        println!("READY");
        loop {
            thread::park();
        }
    }
}

fn over_udp(socket: &UdpSocket, records: &[Record], forge: Option<Ipv4Addr>) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        if let Some(address) = forge {
            let lie = [Record { values: vec![address.to_string()], ..Record::any(&buffer[..len])? }];
            let mut forged = answer(&buffer[..len], &lie)?;
            forged[1] ^= 1;
            socket.send_to(&forged, from)?;
        }
        let mut answered = answer(&buffer[..len], records)?;
        if answered.len() > UDP_MAX {
            answered = answer(&buffer[..len], &[])?;
            answered[2] |= 2;
        }
        socket.send_to(&answered, from)?;
    }
}

fn over_tcp(mut stream: TcpStream, records: &[Record]) -> Result<()> {
    loop {
        let question = read_message(&mut stream)?;
        write_message(&mut stream, &answer(&question, records)?)?;
    }
}

fn answer(question: &[u8], records: &[Record]) -> Result<Vec<u8>> {
    let asked = Packet::parse(question)?;
    let mut packet = Packet::new_reply(asked.id());
    packet.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::RECURSION_DESIRED);
    let question = asked.questions.first().context("no question")?;
    let mut name = question.qname.to_string().to_lowercase();
    for record in records {
        let wanted = question.qtype == QTYPE::TYPE(record.kind) || record.kind == TYPE::CNAME;
        if !wanted || record.name != name {
            continue;
        }
        for value in &record.values {
            let owner = Name::new(&record.name)?.into_owned();
            packet.answers.push(ResourceRecord::new(owner, CLASS::IN, record.ttl, record.data(value)?));
            if record.kind == TYPE::CNAME {
                name = value.clone();
            }
        }
    }
    packet.questions.push(question.clone());
    Ok(packet.build_bytes_vec_compressed()?)
}

impl Record {
    fn parse(text: &str) -> Result<Self> {
        let [name, kind, ttl, value] = text.split_whitespace().collect::<Vec<_>>()[..] else {
            bail!("{text:?} is not NAME TYPE TTL VALUE");
        };
        let values = match value.strip_suffix(".0/24") {
            Some(net) => (1..=250).map(|last| format!("{net}.{last}")).collect(),
            None => vec![value.to_owned()],
        };
        let kind = match kind {
            "A" => TYPE::A,
            "AAAA" => TYPE::AAAA,
            "CNAME" => TYPE::CNAME,
            "HTTPS" => TYPE::HTTPS,
            other => bail!("{other} is none of A, AAAA, CNAME and HTTPS"),
        };
        Ok(Self { name: name.to_owned(), kind, ttl: ttl.parse()?, values })
    }

    /// A record of the name asked for.
    fn any(question: &[u8]) -> Result<Self> {
        let asked = Packet::parse(question)?;
        let name = asked.questions.first().context("no question")?.qname.to_string().to_lowercase();
        Ok(Self { name, kind: TYPE::A, ttl: 300, values: Vec::new() })
    }

    fn data(&self, value: &str) -> Result<RData<'static>> {
        let v4 = || -> Result<u32> { Ok(value.parse::<Ipv4Addr>()?.to_bits()) };
        Ok(match self.kind {
            TYPE::A => RData::A(A { address: v4()? }),
            TYPE::AAAA => RData::AAAA(AAAA { address: value.parse::<Ipv6Addr>()?.to_bits() }),
            TYPE::CNAME => RData::CNAME(CNAME(Name::new(value)?.into_owned())),
            _ => {
                let mut service = SVCB::new(1, Name::new(&self.name)?.into_owned());
                service.set_ipv4hint(&[v4()?]);
                RData::HTTPS(HTTPS(service))
            }
        })
    }
}

#[derive(Args)]
pub(crate) struct Ask {
    /// The name to ask for
    name: String,
    /// Whom to ask
    #[arg(long)]
    server: SocketAddr,
    /// A, AAAA or HTTPS
    #[arg(long, default_value = "A")]
    kind: String,
    /// Over TCP
    #[arg(long)]
    tcp: bool,
    /// Connect to this port of the last address found, at once
    #[arg(long)]
    then: u16,
}

impl Ask {
    pub(crate) fn run(self) -> Result<()> {
        let kind = match self.kind.as_str() {
            "A" => TYPE::A,
            "AAAA" => TYPE::AAAA,
            "HTTPS" => TYPE::HTTPS,
            other => bail!("{other} is none of A, AAAA and HTTPS"),
        };
        let id = std::process::id() as u16;
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(&self.name)?;
        packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
        let question = packet.build_bytes_vec()?;
        let answered = if self.tcp { self.over_tcp(&question)? } else { self.over_udp(&question, id)? };
        let found = found(&Packet::parse(&answered)?);
        let outcome = match found.last() {
            Some(address) => connect(SocketAddr::new(*address, self.then)),
            None => "nothing found".to_owned(),
        };
        println!("{}", serde_json::json!({ "found": found, "outcome": outcome }));
        Ok(())
    }

    /// What is not an answer to this question is thrown away, as every resolver does.
    fn over_udp(&self, question: &[u8], id: u16) -> Result<Vec<u8>> {
        let socket = UdpSocket::bind(if self.server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(self.server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(question)?;
        let mut buffer = [0; 4096];
        loop {
            let len = socket.recv(&mut buffer).context("no answer over UDP")?;
            if buffer[..2] == id.to_be_bytes() {
                return Ok(buffer[..len].to_vec());
            }
        }
    }

    fn over_tcp(&self, question: &[u8]) -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&self.server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write_message(&mut stream, question)?;
        read_message(&mut stream).context("no answer over TCP")
    }
}

fn found(packet: &Packet<'_>) -> Vec<IpAddr> {
    let address = |record: &ResourceRecord<'_>| match &record.rdata {
        RData::A(a) => Some(IpAddr::from(Ipv4Addr::from_bits(a.address))),
        RData::AAAA(aaaa) => Some(IpAddr::from(Ipv6Addr::from_bits(aaaa.address))),
        RData::HTTPS(https) => https.0.iter_params().find_map(|param| match param {
            simple_dns::rdata::SVCParam::Ipv4Hint(list) => list.first().map(|bits| Ipv4Addr::from_bits(*bits).into()),
            _ => None,
        }),
        _ => None,
    };
    packet.answers.iter().filter_map(address).collect()
}

fn connect(to: SocketAddr) -> String {
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn read_message(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let len = u16::try_from(message.len()).context("a message too long for DNS")?;
    Ok(stream.write_all(&[&len.to_be_bytes(), message].concat())?)
}

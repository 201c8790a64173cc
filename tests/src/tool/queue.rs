//! `lab-tool queue`: a verdict in userspace on every packet of an NFQUEUE, the way enforcers without eBPF work.

use anyhow::{Context, Result};
use clap::Args;
use nfq::{Queue as Netlink, Verdict};

#[derive(Args)]
pub(crate) struct Queue {
    /// Number of the queue
    #[arg(long, default_value_t = 0)]
    number: u16,
}

impl Queue {
    pub(crate) fn run(self) -> Result<()> {
        let mut queue = Netlink::open().context("cannot open a netlink socket for NFQUEUE")?;
        queue.bind(self.number).with_context(|| format!("cannot bind queue {}", self.number))?;
        println!("READY");
        loop {
            let mut packet = queue.recv().context("cannot receive from the queue")?;
            packet.set_verdict(Verdict::Accept);
            queue.verdict(packet).context("cannot give a verdict")?;
        }
    }
}

//! The traffic tool's commands. Each prints JSON; servers print `READY` once they listen.

mod calls;
mod connect;
mod dialog;
mod flood;
mod hear;
mod hold;
mod load;
mod names;
mod queue;
mod raw;
mod serve;
mod shuffle;
mod socket;
mod transfer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[derive(Parser)]
#[command(name = "lab-tool", about = "Small servers, clients and load generators for the laboratory")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve TCP, logging every connection and every byte count as a line of JSON
    Serve(serve::Serve),
    /// Try to connect, once or more, and say how it ended
    Connect(connect::Connect),
    /// Call several addresses in turn for some time, and count how each call ended
    Calls(calls::CallAll),
    /// Play one end of a connection step by step
    Dialog(dialog::Dialog),
    /// Open connections and keep them open, reporting each that ends
    Hold(hold::Hold),
    /// Connect, request, response, close: as many as possible
    Crr(load::Load),
    /// Request and response on one connection, as many as possible
    Rr(load::Load),
    /// Send in bulk on one or more connections
    Stream(load::Load),
    /// Carry data on many connections until told to stop, and say whether a byte is missing
    Transfer(transfer::Transfer),
    /// Double packets between two interfaces and change their order
    Shuffle(shuffle::Shuffle),
    /// Accept every packet of an NFQUEUE, one verdict a packet
    Queue(queue::Queue),
    /// Answer DNS questions over UDP and TCP
    Resolver(names::Resolver),
    /// Ask a DNS server, and connect to what it answers
    Ask(names::Ask),
    /// Print the datagrams (or connections) a socket hears
    Hear(hear::Hear),
    /// Send datagrams
    Tell(hear::Tell),
    /// Send a hand-made TCP segment, or a whole captured frame, and print what comes back
    Raw(raw::Raw),
    /// Send very many of them
    Flood(flood::Flood),
}

/// The whole program.
pub fn main() -> ExitCode {
    // Thousands of connections in flight need as many descriptors.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let more = most.max(100_000);
        if setrlimit(Resource::RLIMIT_NOFILE, more, more).is_err() {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
        }
    }
    let result = match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Connect(connect) => connect.run(),
        Command::Calls(calls) => calls.run(),
        Command::Dialog(dialog) => dialog.run(),
        Command::Hold(hold) => hold.run(),
        Command::Crr(load) => load.run("crr"),
        Command::Rr(load) => load.run("rr"),
        Command::Stream(load) => load.run("stream"),
        Command::Transfer(transfer) => transfer.run(),
        Command::Shuffle(shuffle) => shuffle.run(),
        Command::Queue(queue) => queue.run(),
        Command::Resolver(resolver) => resolver.run(),
        Command::Ask(ask) => ask.run(),
        Command::Hear(hear) => hear.run(),
        Command::Tell(tell) => tell.run(),
        Command::Raw(raw) => raw.run(),
        Command::Flood(flood) => flood.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-tool: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! The laboratory's traffic tool: small servers, clients and load generators that run inside a lab host.

fn main() -> std::process::ExitCode {
    tests::tool::main()
}

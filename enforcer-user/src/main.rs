//! Entry point of the `enforcer` binary.

fn main() -> std::process::ExitCode {
    enforcer_user::cli::main()
}

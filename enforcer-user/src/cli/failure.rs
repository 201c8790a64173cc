//! Why a command failed, and the exit code that says so.

use std::{fmt, io, process::ExitCode};

use crate::{
    admin::ClientError,
    config::{ConfigError, error_text},
};

/// The command failed.
pub(super) const FAILED: u8 = 1;
/// The agent cannot be reached.
pub(super) const UNREACHABLE: u8 = 3;
/// The configuration is invalid.
pub(super) const CONFIG: u8 = 4;

/// What the agent put in force was not confirmed, and is withdrawn.
pub(super) const NOT_CONFIRMED: u8 = 5;

/// A failed command.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    /// `None` if there is nobody left to tell (the reader of our output hung up).
    message: Option<String>,
}

impl Failure {
    pub fn new(code: u8, message: impl fmt::Display) -> Self {
        Self { code, message: Some(message.to_string()) }
    }

    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(FAILED, message)
    }

    /// The same message under another exit code.
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The same, said of something.
    pub fn within(self, what: &str) -> Self {
        Self { message: self.message.map(|message| format!("{what}: {message}")), ..self }
    }

    pub fn report(self) -> ExitCode {
        use io::Write;
        if let Some(message) = self.message {
            // With standard error closed too, the exit code is all there is.
            let _ = writeln!(io::stderr(), "enforcer: {message}");
        }
        ExitCode::from(self.code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match error {
            ClientError::Connect { .. } | ClientError::Broken { .. } => UNREACHABLE,
            ClientError::Foreign { .. } | ClientError::Refused(_) => FAILED,
        };
        Self::new(code, error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(CONFIG, error)
    }
}

/// Errors of writing output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { code: 0, message: None },
            _ => Self::failed(format!("cannot write the output: {}", error_text(&error))),
        }
    }
}

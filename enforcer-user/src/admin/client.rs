//! The command line's end of the admin socket; blocking, because a command has nothing else to do.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::protocol::{AdminError, Reply, Request, Response};
use crate::config::error_text;

/// How long the agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer taken, bytes: some 500,000 flows.
const ANSWER_MAX: u64 = 256 << 20;

/// A connection to the agent.
pub struct Client {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
}

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It cannot be reached.
    #[error("cannot reach the agent at {}: {}{hint}", .socket.display(), error_text(.error))]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the kernel says.
        error: io::Error,
        /// What to do next.
        hint: &'static str,
    },
    /// The connection broke.
    #[error("the agent at {} hung up or did not answer: {}; see its log", .socket.display(), error_text(.error))]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
    /// It answered something that cannot be understood.
    #[error("the agent at {} speaks another version ({error}); restart it or use its own `enforcer`", .socket.display())]
    Foreign {
        /// The socket.
        socket: PathBuf,
        /// What could not be understood.
        error: serde_json::Error,
    },
    /// It refused.
    #[error(transparent)]
    Refused(#[from] AdminError),
}

impl Client {
    /// Connects to the agent.
    ///
    /// # Errors
    /// [`ClientError::Connect`], with what to do next.
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    "; is it running? start it with `enforcer run`, or name its socket with `--socket PATH`"
                }
                io::ErrorKind::PermissionDenied => {
                    "; only root and the group in `admin.group` may use it: run as root or join the group"
                }
                _ => "; name its socket with `--socket PATH`",
            };
            ClientError::Connect { socket: socket.into(), error, hint }
        })?;
        let client = Self { stream: BufReader::new(stream), socket: socket.into() };
        client.stream.get_ref().set_read_timeout(Some(TIMEOUT)).map_err(|error| client.broken(error))?;
        client.stream.get_ref().set_write_timeout(Some(TIMEOUT)).map_err(|error| client.broken(error))?;
        Ok(client)
    }

    /// The process at the other end, as the kernel vouches; none if it lives in another PID namespace.
    pub fn agent_pid(&self) -> Option<u32> {
        let stream = self.stream.get_ref();
        let peer = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
        u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0)
    }

    /// Asks once.
    ///
    /// # Errors
    /// If the agent refuses or cannot be talked to.
    pub fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.send(request)?;
        let reply = self.receive()?;
        reply.ok_or_else(|| self.broken(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Asks, then calls `each` for every answer until it breaks off or the agent ends.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn follow(
        &mut self,
        request: &Request,
        mut each: impl FnMut(Response) -> std::ops::ControlFlow<()>,
    ) -> Result<(), ClientError> {
        self.send(request)?;
        self.stream.get_ref().set_read_timeout(None).map_err(|error| self.broken(error))?;
        while let Some(response) = self.receive()? {
            if each(response).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line =
            serde_json::to_vec(request).map_err(|error| ClientError::Foreign { socket: self.socket.clone(), error })?;
        line.push(b'\n');
        // A refusal may already be waiting on a connection the agent has closed: let `receive` find it.
        match self.stream.get_mut().write_all(&line) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(self.broken(error)),
            _ => Ok(()),
        }
    }

    fn receive(&mut self) -> Result<Option<Response>, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(ANSWER_MAX).read_until(b'\n', &mut line);
        read.map_err(|error| self.broken(error))?;
        if line.is_empty() {
            return Ok(None);
        }
        match serde_json::from_slice(&line) {
            Ok(Reply::Ok(response)) => Ok(Some(*response)),
            Ok(Reply::Error(error)) => Err(error.into()),
            Err(error) => Err(ClientError::Foreign { socket: self.socket.clone(), error }),
        }
    }

    fn broken(&self, error: io::Error) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), error }
    }
}

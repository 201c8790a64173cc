//! The agent's end of the admin socket.

use std::{
    future::Future,
    io,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::stat::{Mode, umask},
    unistd::{Gid, Group, Uid, User},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{
    protocol::{AdminError, ErrorKind, Reply, Request, Response},
    view::RecordView,
};
use crate::config::error_text;

/// The future answer to a request.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response, AdminError>> + Send + 'a>>;

/// What arrives while following the flow log.
#[derive(Clone, Debug, PartialEq)]
pub enum FollowItem {
    /// A record.
    Record(Box<RecordView>),
    /// The follower was too slow for this many records.
    Missed(u64),
}

/// The agent, as far as its admin socket is concerned.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request; never called with [`Request::Follow`].
    fn handle(&self, caller: Caller, request: Request) -> Answer<'_>;

    /// Starts following the flow log; the receiver is dropped when the client hangs up.
    fn follow(&self) -> mpsc::Receiver<FollowItem>;
}

/// Who asks, as the kernel vouches (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Process, if it lives in this PID namespace.
    pub pid: Option<i32>,
}

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; the next is refused as busy.
    pub connections: usize,
    /// Longest request, bytes.
    pub request_bytes: usize,
    /// Longest request of root, who hands over whole policies, bytes.
    pub root_request_bytes: usize,
    /// Longest silence before a request, and longest time to take an answer.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, request_bytes: 64 << 10, root_request_bytes: 64 << 20, idle: Duration::from_secs(10) }
    }
}

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent listens.
    #[error("another agent already listens on {}; stop it first, or set another `paths.socket`", .0.display())]
    Busy(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{} exists and is no socket; move it away, or set another `paths.socket`", .0.display())]
    NoSocket(PathBuf),
    /// The configured group does not exist.
    #[error(
        "the group {0:?} in `admin.group` does not exist; create it with `groupadd --system {0}`, or leave the key out"
    )]
    NoGroup(String),
    /// The kernel refused.
    #[error("cannot listen on {}: {step}: {}", .socket.display(), error_text(.error))]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What was being done.
        step: &'static str,
        /// What the kernel says.
        error: io::Error,
    },
}

/// The open socket; removed when dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    socket: PathBuf,
    group: Option<Gid>,
    limits: Limits,
}

impl Server {
    /// Opens the socket for root, the agent's own user and `group`. Replaces the socket of an agent that died.
    ///
    /// Must be called within a tokio runtime, before other threads create files: it changes the umask for a moment.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn bind(socket: &Path, group: Option<&str>) -> Result<Self, BindError> {
        let io = |step| move |error| BindError::Io { socket: socket.into(), step, error };
        let group = group.map(find_group).transpose()?;
        if let Some(directory) = socket.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(io("creating its directory"))?;
        }
        clear(socket)?;
        // Nobody else may connect in the moment between bind and chown.
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(socket);
        umask(before);
        let server = Self {
            listener: listener.map_err(io("binding"))?,
            socket: socket.into(),
            group,
            limits: Limits::default(),
        };
        if group.is_some() {
            std::os::unix::fs::chown(socket, None, group.map(Gid::as_raw)).map_err(io("giving it to `admin.group`"))?;
            std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660)).map_err(io("setting its mode"))?;
        }
        Ok(server)
    }

    /// Other limits than the default.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves until cancelled.
    pub async fn serve(self, handler: Arc<dyn Handler>) {
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors or memory: wait for some to come back instead of spinning.
                    tracing::warn!(%error, "admin socket: cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let slot = Arc::clone(&slots).try_acquire_owned();
            let (handler, limits, group) = (Arc::clone(&handler), self.limits, self.group);
            tokio::spawn(async move {
                let admitted = match (slot, caller(&stream, group)) {
                    (_, Err(error)) => Err(error),
                    (Err(_), _) => Err(AdminError::new(ErrorKind::Busy, "too many connections; try again later")),
                    (Ok(slot), Ok(caller)) => Ok((slot, caller)),
                };
                let (read, write) = stream.into_split();
                let mut connection = Connection { read: BufReader::new(read), write, limits };
                match admitted {
                    Ok((_slot, caller)) => connection.run(caller, &*handler).await,
                    Err(error) => connection.refuse(error).await,
                }
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Makes way for a new socket: removes one nobody listens on, refuses to touch anything else.
fn clear(socket: &Path) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt;
    let io = |step| move |error| BindError::Io { socket: socket.into(), step, error };
    match std::fs::symlink_metadata(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("looking at it")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindError::NoSocket(socket.into())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(socket) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(socket).map_err(io("removing what a dead agent left"))
        }
        // A full backlog (EAGAIN) also means that somebody listens.
        Ok(_) => Err(BindError::Busy(socket.into())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(BindError::Busy(socket.into())),
        Err(error) => Err(io("asking whether another agent listens")(error)),
    }
}

fn find_group(name: &str) -> Result<Gid, BindError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(BindError::NoGroup(name.into())),
    }
}

/// Who is at the other end, if that is somebody who may.
fn caller(stream: &UnixStream, group: Option<Gid>) -> Result<Caller, AdminError> {
    let credentials = nix::sys::socket::getsockopt(&stream.as_fd(), nix::sys::socket::sockopt::PeerCredentials)
        .map_err(|error| AdminError::internal(format!("SO_PEERCRED: {error}")))?;
    let caller =
        Caller { uid: credentials.uid(), gid: credentials.gid(), pid: Some(credentials.pid()).filter(|pid| *pid != 0) };
    let trusted = caller.uid == 0 || caller.uid == nix::unistd::geteuid().as_raw();
    if trusted || group.is_some_and(|group| is_member(&caller, group)) {
        return Ok(caller);
    }
    Err(AdminError::new(
        ErrorKind::Denied,
        format!("user {} may not use this socket; run as root, or join the group in `admin.group`", caller.uid),
    ))
}

/// Membership by the account database, and by the primary group the process has now.
fn is_member(caller: &Caller, group: Gid) -> bool {
    if caller.gid == group.as_raw() {
        return true;
    }
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(caller.uid)) else { return false };
    let listed = matches!(Group::from_gid(group), Ok(Some(entry)) if entry.mem.contains(&user.name));
    user.gid == group || listed
}

struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    limits: Limits,
}

impl Connection {
    async fn run(&mut self, caller: Caller, handler: &dyn Handler) {
        if caller.uid == 0 {
            self.limits.request_bytes = self.limits.root_request_bytes;
        }
        loop {
            let line = match timeout(self.limits.idle, self.line()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Err(error)) => return self.refuse(error).await,
                Ok(Ok(None)) | Err(_) => return,
            };
            let reply = match serde_json::from_slice(&line) {
                Ok(Request::Follow) => return self.follow(handler.follow()).await,
                Ok(request) => match handler.handle(caller, request).await {
                    Ok(response) => Reply::Ok(Box::new(response)),
                    Err(error) => Reply::Error(error),
                },
                Err(error) => Reply::Error(AdminError::new(ErrorKind::Invalid, format!("not a request: {error}"))),
            };
            if self.send(&reply).await.is_err() {
                return;
            }
        }
    }

    /// The next line without its end; `None` when the client has hung up.
    async fn line(&mut self) -> Result<Option<Vec<u8>>, AdminError> {
        let mut line = Vec::new();
        let limit = self.limits.request_bytes as u64 + 1;
        let read = (&mut self.read).take(limit).read_until(b'\n', &mut line).await;
        if read.is_err() || line.is_empty() {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
            return Ok(Some(line));
        }
        if line.len() > self.limits.request_bytes {
            let message = format!("the request is longer than {} bytes", self.limits.request_bytes);
            return Err(AdminError::new(ErrorKind::Invalid, message));
        }
        Ok(None)
    }

    async fn follow(&mut self, mut items: mpsc::Receiver<FollowItem>) {
        let mut scratch = [0u8; 64];
        loop {
            let response = tokio::select! {
                item = items.recv() => match item {
                    Some(FollowItem::Record(record)) => Response::Record(record),
                    Some(FollowItem::Missed(count)) => Response::Missed(count),
                    None => return,
                },
                // A follower has nothing more to say; the end of its stream is how it hangs up.
                read = self.read.read(&mut scratch) => match read {
                    Ok(1..) => continue,
                    _ => return,
                },
            };
            if self.send(&Reply::Ok(Box::new(response))).await.is_err() {
                return;
            }
        }
    }

    async fn refuse(&mut self, error: AdminError) {
        let _ = self.send(&Reply::Error(error)).await;
    }

    async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        timeout(self.limits.idle, self.write.write_all(&line)).await?
    }
}

#[cfg(test)]
mod tests;

//! The Docker Engine API over its socket: HTTP/1.1, JSON. What comes is bounded in size and time and trusted in nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Oldest version of the API that has all that is asked for (Docker 20.10).
const VERSION: &str = "v1.41";
/// The largest answer taken, bytes: some ten thousand containers.
const ANSWER_MAX: usize = 64 << 20;
/// The longest event taken, bytes; the daemon's own limit on a container's definition is below it.
pub const EVENT_MAX: usize = 4 << 20;
/// How long an answer may take. Asking for one container waits while that container starts.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Why the engine could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens.
    #[error("{}: {source}; is dockerd running, and is `docker.socket` its socket?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("{request}: {source}")]
    Http {
        /// What was asked.
        request: String,
        /// What went wrong.
        source: hyper::Error,
    },
    /// The engine refused.
    #[error("{request}: {status}")]
    Status {
        /// What was asked.
        request: String,
        /// The answer's status.
        status: StatusCode,
    },
    /// The answer does not say what it should.
    #[error("{request}: {problem}")]
    Answer {
        /// What was asked.
        request: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// No answer in time.
    #[error("{request}: no answer within {} s", ANSWER_LIMIT.as_secs())]
    Late {
        /// What was asked.
        request: String,
    },
}

impl ApiError {
    /// Whether the engine answered that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// A client; it holds no connection.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

impl Api {
    /// A client of the engine that listens at this socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Where the engine listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`, its answer as JSON.
    ///
    /// # Errors
    /// Every kind of [`ApiError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let request = || format!("GET {path}");
        let body = timeout(ANSWER_LIMIT, async {
            let response = self.send(path).await?;
            let collected = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            collected.map(|body| body.to_bytes()).map_err(|error| {
                let long = error.downcast_ref::<LengthLimitError>().is_some();
                let problem = if long { format!("longer than {ANSWER_MAX} bytes") } else { error.to_string() };
                ApiError::Answer { request: request(), problem }
            })
        });
        let body = body.await.map_err(|_| ApiError::Late { request: request() })??;
        serde_json::from_slice(&body).map_err(|error| ApiError::Answer {
            request: request(),
            problem: format!("not the JSON expected: {error}"),
        })
    }

    /// Everything that happens from now on; the subscription exists when this returns.
    ///
    /// # Errors
    /// Every kind of [`ApiError`].
    pub async fn events(&self) -> Result<Events, ApiError> {
        let path = "/events";
        let response = timeout(ANSWER_LIMIT, self.send(path)).await;
        let response = response.map_err(|_| ApiError::Late { request: format!("GET {path}") })??;
        Ok(Events { body: response.into_body(), lines: Lines::default() })
    }

    async fn send(&self, path: &str) -> Result<Response<Incoming>, ApiError> {
        let request = || format!("GET {path}");
        let http = |source| ApiError::Http { request: request(), source };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ApiError::Connect { path: self.socket.clone(), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to dockerd broke");
            }
        });
        let message = Request::get(format!("/{VERSION}{path}")).header("Host", "docker").body(Empty::<Bytes>::new());
        let message = message.map_err(|error| ApiError::Answer { request: request(), problem: error.to_string() })?;
        let response = sender.send_request(message).await.map_err(http)?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(ApiError::Status { request: request(), status }),
        }
    }
}

/// The stream of events.
pub struct Events {
    body: Incoming,
    lines: Lines,
}

impl Events {
    /// The next event's JSON; `None` when the engine ends the stream. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`ApiError::Http`] if the connection broke, [`ApiError::Answer`] if an event is longer than [`EVENT_MAX`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        let request = || "GET /events".to_owned();
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(source)) => return Err(ApiError::Http { request: request(), source }),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.push(&data).map_err(|problem| ApiError::Answer { request: request(), problem })?;
                    }
                }
            }
        }
    }
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    // Before this offset there is no end of a line.
    seen: usize,
}

impl Lines {
    /// Takes more of the stream.
    ///
    /// # Errors
    /// If a line is longer than [`EVENT_MAX`].
    pub fn push(&mut self, data: &[u8]) -> Result<(), String> {
        self.bytes.extend_from_slice(data);
        // No line ends before `seen`: without an end behind it either, all of it is one line.
        if self.bytes.len() > EVENT_MAX && !self.bytes[self.seen..].contains(&b'\n') {
            return Err(format!("an event longer than {EVENT_MAX} bytes"));
        }
        Ok(())
    }
}

impl Iterator for Lines {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let found = self.bytes.get(self.seen..)?.iter().position(|byte| *byte == b'\n');
            let Some(end) = found else {
                self.seen = self.bytes.len();
                return None;
            };
            let mut line: Vec<u8> = self.bytes.drain(..=self.seen + end).collect();
            self.seen = 0;
            line.pop();
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Result<Vec<Vec<u8>>, String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for chunk in chunks {
            lines.push(chunk)?;
            found.extend(&mut lines);
        }
        Ok(found)
    }

    #[test]
    fn lines_are_the_same_however_the_stream_is_cut() {
        let stream = b"{\"a\":1}\n\r\n{\"b\":2}\n\n{\"c\"";
        let expected = [b"{\"a\":1}".to_vec(), b"{\"b\":2}".to_vec()];
        for size in 1..=stream.len() {
            let chunks: Vec<_> = stream.chunks(size).collect();
            assert_eq!(cut(&chunks).unwrap(), expected, "in chunks of {size}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let chunk = vec![b' '; 1 << 20];
        let endless: Vec<&[u8]> = (0..6).map(|_| chunk.as_slice()).collect();
        assert!(cut(&endless).unwrap_err().contains("longer than"));
        let mut ends = chunk.clone();
        ends.push(b'\n');
        let long: Vec<&[u8]> = (0..20).map(|_| ends.as_slice()).collect();
        assert_eq!(cut(&long).unwrap(), Vec::<Vec<u8>>::new(), "many lines are no long line");
    }
}

//! gRPC over the runtime's socket: bounded in size and time.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::uri::PathAndQuery;
use hyper::http::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

/// The largest answer taken, bytes; kubelet itself takes 16 MiB.
const ANSWER_MAX: usize = 16 << 20;
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Why the runtime could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nobody listens.
    #[error("{}: {source}; is the runtime running, and is `containerd.socket` its socket?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What listens speaks no HTTP/2.
    #[error("{}: {source}", path.display())]
    Http {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: hyper::Error,
    },
    /// The runtime refused, or the connection broke.
    #[error("{method}: {} ({:?})", status.message(), status.code())]
    Call {
        /// What was called.
        method: &'static str,
        /// The answer.
        status: Box<Status>,
    },
    /// No answer in time.
    #[error("{method}: no answer within {} s", ANSWER_LIMIT.as_secs())]
    Late {
        /// What was called.
        method: &'static str,
    },
}

impl CriError {
    /// Whether the runtime does not have this method.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Call { status, .. } if status.code() == Code::Unimplemented)
    }
}

/// A connection to a runtime.
#[derive(Clone, Debug)]
pub struct Client {
    grpc: Grpc<Connection>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`CriError::Connect`] or [`CriError::Http`].
    pub async fn connect(socket: &Path) -> Result<Self, CriError> {
        let connect = |source| CriError::Connect { path: socket.to_owned(), source };
        let http = |source| CriError::Http { path: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).await.map_err(connect)?;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let handshake = timeout(ANSWER_LIMIT, handshake).await.map_err(|_| connect(io::ErrorKind::TimedOut.into()))?;
        let (sender, connection) = handshake.map_err(http)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the runtime broke");
            }
        });
        let origin = Uri::from_static("http://localhost");
        let grpc = Grpc::with_origin(Connection(sender), origin).max_decoding_message_size(ANSWER_MAX);
        Ok(Self { grpc })
    }

    /// One question, one answer. `method` is `/package.Service/Method`.
    ///
    /// # Errors
    /// [`CriError::Call`] or [`CriError::Late`].
    pub async fn call<Q, A>(&mut self, method: &'static str, question: Q) -> Result<A, CriError>
    where
        Q: Message + Send + 'static,
        A: Message + Default + Send + 'static,
    {
        let failed = |status| CriError::Call { method, status: Box::new(status) };
        let answer = timeout(ANSWER_LIMIT, async {
            self.ready().await?;
            let path = PathAndQuery::from_static(method);
            self.grpc.unary(tonic::Request::new(question), path, ProstCodec::<Q, A>::default()).await
        });
        let answer = answer.await.map_err(|_| CriError::Late { method })?;
        answer.map(tonic::Response::into_inner).map_err(failed)
    }

    /// One question, many answers.
    ///
    /// # Errors
    /// [`CriError::Call`].
    pub async fn stream<Q, A>(&mut self, method: &'static str, question: Q) -> Result<Streaming<A>, CriError>
    where
        Q: Message + Send + 'static,
        A: Message + Default + Send + 'static,
    {
        let failed = |status| CriError::Call { method, status: Box::new(status) };
        self.ready().await.map_err(failed)?;
        let path = PathAndQuery::from_static(method);
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.grpc.server_streaming(tonic::Request::new(question), path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(failed)
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))
    }
}

/// The service that tonic speaks through.
#[derive(Clone, Debug)]
struct Connection(SendRequest<Body>);

impl tower_service::Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

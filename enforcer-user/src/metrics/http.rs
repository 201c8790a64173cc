//! The HTTP endpoint: `GET /metrics`, `/healthz`, `/readyz`, and nothing else.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use super::Metrics;
use crate::config::error_text;

/// Connections served at once; the next is closed.
const CONNECTIONS: usize = 32;
/// Longest wait for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection, whatever it does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest request head, bytes; hyper's own minimum.
const HEAD_MAX: usize = 8 << 10;

/// The endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for metrics: {}; set another `metrics.listen`, or \"\" for none", error_text(.error))]
pub struct MetricsError {
    /// The configured address.
    pub address: SocketAddr,
    /// What the kernel says.
    pub error: io::Error,
}

/// The open endpoint.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
}

impl MetricsServer {
    /// Opens the endpoint.
    ///
    /// # Errors
    /// If the address is taken or not of this host.
    pub async fn bind(address: SocketAddr) -> Result<Self, MetricsError> {
        let listener = TcpListener::bind(address).await.map_err(|error| MetricsError { address, error })?;
        Ok(Self { listener })
    }

    /// Its socket.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until cancelled.
    pub async fn serve(self, metrics: Arc<Metrics>) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "metrics: cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let metrics = Arc::clone(&metrics);
            tokio::spawn(async move {
                let _slot = slot;
                // Errors here are the client's: it hung up, was too slow, or spoke no HTTP.
                let _ = timeout(CONNECTION_TIMEOUT, connection(stream, metrics)).await;
            });
        }
    }
}

async fn connection(stream: TcpStream, metrics: Arc<Metrics>) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let metrics = Arc::clone(&metrics);
        async move { Ok::<_, Infallible>(answer(&request, metrics).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(request: &Request<Incoming>, metrics: Arc<Metrics>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => match tokio::task::spawn_blocking(move || metrics.render()).await {
            Ok(Ok(text)) => plain(StatusCode::OK, text),
            Ok(Err(error)) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/healthz" | "/readyz" if !metrics.stuck().is_empty() => {
            plain(StatusCode::SERVICE_UNAVAILABLE, format!("hangs: {}\n", metrics.stuck().join(", ")))
        }
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if metrics.is_ready() => plain(StatusCode::OK, "ready\n"),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
